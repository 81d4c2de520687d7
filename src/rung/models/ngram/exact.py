"""The probabilities of an n-gram model as whole numbers, the same ones on every machine."""

import math
from typing import TYPE_CHECKING

import numpy
import torch
from numpy.typing import NDArray

from rung.models.exact_probabilities import (
    ExactProbabilities,
    Integers,
    TrieLevel,
    exponentiate_base_10,
    sum_before,
)

if TYPE_CHECKING:
    from rung.models.ngram.model import NgramForCausalLM

ONE = 2.0**50  # a probability of 1 as a whole number; sums stay below 2^53, as float64 needs
ROWS_AT_ONCE = 2**18


def make_exact_ngrams(model: "NgramForCausalLM") -> ExactProbabilities:
    """Make whole numbers of the model's probabilities and back-off weights."""
    orders = range(1, model.config.order + 1)
    numbers = [
        (exponentiate_base_10(_read(model, f"log10_probability_{order}")) * ONE).astype(numpy.int64)
        for order in orders
    ]
    weights = [
        exponentiate_base_10(_read(model, f"log10_backoff_{order}")) for order in orders[:-1]
    ]
    levels: list[TrieLevel] = []
    suffixes = numpy.full(model.config.vocab_size, -1)  # the row without its first token
    error = 0  # what rounding may take from a token
    for order in orders[1:]:
        first = _read(model, f"first_{order - 1}").astype(numpy.int64)
        tokens = numpy.ascontiguousarray(_read(model, f"tokens_{order}"))
        parents = numpy.repeat(numpy.arange(len(first) - 1), numpy.diff(first))
        found = tokens.astype(numpy.int64)
        if order > 2:
            found = _find_suffixes(model, order - 1, suffixes[parents], found)
        lower = numbers[order - 2][found]
        if len(missing := numpy.flatnonzero(found < 0)):
            lower[missing] = _back_off(
                model, _list_tokens(levels, parents[missing], tokens[missing]), numbers, weights
            )
        weighted = (weights[order - 2][parents] * lower).astype(numpy.int64)
        levels.append(
            TrieLevel(first, tokens, sum_before(numbers[order - 1] - weighted), weights[order - 2])
        )
        error = math.ceil(error * max(1.0, float(weights[order - 2].max(initial=0)))) + 2
        suffixes = found
    return ExactProbabilities(sum_before(numbers[0]), levels, error + 1)


def _read(model: "NgramForCausalLM", name: str) -> NDArray:
    tensor = getattr(model, name)
    return tensor.detach().cpu().numpy()


def _find_suffixes(
    model: "NgramForCausalLM", order: int, parents: Integers, tokens: Integers
) -> Integers:
    """Find the row of each (parent, token) of this order, some at a time."""
    found = numpy.empty_like(tokens)
    for at in range(0, len(tokens), ROWS_AT_ONCE):
        part = slice(at, at + ROWS_AT_ONCE)
        rows = model.find_children(
            order, torch.from_numpy(parents[part]), torch.from_numpy(tokens[part])
        )
        found[part] = rows.numpy()
    return found


def _list_tokens(
    levels: list[TrieLevel], parents: Integers, last: NDArray[numpy.integer]
) -> Integers:
    """List the tokens (N, order - 1) of n-grams without their first one."""
    columns = [last.astype(numpy.int64)]
    for level in reversed(levels):
        columns.append(level.tokens[parents].astype(numpy.int64))
        parents = numpy.searchsorted(level.first, parents, side="right") - 1
    return numpy.stack(columns[::-1], axis=1)


def _back_off(
    model: "NgramForCausalLM",
    tokens: Integers,
    numbers: list[Integers],
    weights: list[NDArray[numpy.float64]],
) -> Integers:
    """Return the number of the last of the tokens (N, T) after those before it.

    A model that was pruned or came from another tool may lack the shorter n-grams of a longer one.
    """
    result = numpy.empty(len(tokens), dtype=numpy.int64)
    for at in range(0, len(tokens), ROWS_AT_ONCE):
        part = tokens[at : at + ROWS_AT_ONCE]
        found = [rows.numpy() for rows in model.find_ngrams(torch.from_numpy(part), part.shape[1])]
        value = numbers[0][part[:, -1]]
        for order in range(2, part.shape[1] + 1):
            context, row = found[order - 2][:, -2], found[order - 1][:, -1]
            backed_off = (weights[order - 2][context] * value).astype(numpy.int64)
            value = numpy.where(context < 0, value, backed_off)
            value = numpy.where(row < 0, value, numbers[order - 1][row])
        result[at : at + ROWS_AT_ONCE] = value
    return result
