"""Probabilities as whole numbers: the one place where a model's floats become what is coded.

A predictor has texts in slots. Of each it gives the cumulative numbers of the next token, F(m) over
the tokens below m, which rise by at least 1 with every token. Rungs that count make such numbers
themselves, the same on every machine (`rung.models.exact_probabilities`). Those of a neural model
are the floats that its step computes, times 2^50 and cut, and 1 more.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy
import torch
from torch import Tensor

from rung.compiler import Address, compile_source
from rung.evaluation.cache import CACHE_STATES
from rung.models.base import check_finite
from rung.models.exact_probabilities import Integers

QUANTIZE_SOURCE = Path(__file__).with_suffix(".c")
UNIT = 2.0**50  # a probability of 1 as a whole number


class Predictor(Protocol):
    """Texts in slots, and the cumulative numbers of the next token of each."""

    vocab_size: int

    def reset(self, slot: int) -> None:
        """Empty a slot: what is appended next opens a text."""

    def append(self, slots: Integers, tokens: Integers) -> None:
        """Append a token to the text of each slot."""

    def cumulate(self, slots: Integers, places: Integers) -> Integers:
        """Sum the numbers of all tokens below each of the places (N, width).

        The slots are those of the last `append`, in their order.
        """


class Stepper(Protocol):
    """A neural model that reads texts in slots, one token of each at a time."""

    vocab_size: int

    def reset(self, slot: int) -> None:
        """Empty a slot."""

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Append a token to each text: return logits (N, V), and hidden states (N, D) if kept."""


class SteppedProbabilities:
    """The predictor of a neural model."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper, self.vocab_size = stepper, stepper.vocab_size
        self.sums: Integers = numpy.empty((0, 0), dtype=numpy.int64)

    def reset(self, slot: int) -> None:
        """Empty a slot."""
        self.stepper.reset(slot)

    def append(self, slots: Integers, tokens: Integers) -> None:
        """Append a token to the text of each slot. Raises `RunError` for logits of no number."""
        logits, states = self.stepper.step(slots.tolist(), tokens.tolist())
        check_finite(logits)
        probabilities = logits.float().softmax(dim=1)
        self.sums = quantize(self.change(slots, tokens, probabilities, states))

    def change(
        self, slots: Integers, tokens: Integers, probabilities: Tensor, states: Tensor | None
    ) -> Tensor:
        """Return the probabilities (N, V) to code with."""
        return probabilities

    def cumulate(self, slots: Integers, places: Integers) -> Integers:
        """Sum the numbers of all tokens below each of the places (N, width)."""
        rows = numpy.arange(len(places))[:, None] * (self.vocab_size + 1)
        return self.sums.reshape(-1).take(numpy.minimum(places, self.vocab_size) + rows)


class CachedProbabilities(SteppedProbabilities):
    """A neural model, interpolated with the continuous cache of each text (`cache.py`)."""

    def __init__(self, stepper: Stepper, weight: float, sharpness: float) -> None:
        super().__init__(stepper)
        self.weight, self.sharpness = weight, sharpness
        self.seen: dict[int, tuple[list[Tensor], list[int]]] = {}  # states, and what followed

    def reset(self, slot: int) -> None:
        """Empty a slot and its cache."""
        super().reset(slot)
        self.seen[slot] = ([], [])

    def change(
        self, slots: Integers, tokens: Integers, probabilities: Tensor, states: Tensor | None
    ) -> Tensor:
        """Mix the cache in, but for the first token of a text."""
        assert states is not None
        mixed = probabilities.clone()
        for row, (slot, token) in enumerate(zip(slots.tolist(), tokens.tolist(), strict=True)):
            before, followed = self.seen[slot]
            if before:  # what follows the last state is now known
                followed.append(token)
                cached = self._read(before, followed, states[row])
                mixed[row] = (1 - self.weight) * probabilities[row] + self.weight * cached
            before.append(states[row].float().clone())
            del before[:-CACHE_STATES], followed[: -CACHE_STATES + 1]
        return mixed

    def _read(self, before: list[Tensor], followed: list[int], state: Tensor) -> Tensor:
        products = torch.stack(before) @ state.float()
        shares = (self.sharpness * products).softmax(dim=0)
        return torch.zeros(self.vocab_size).index_add_(0, torch.tensor(followed), shares)


class MixedProbabilities:
    """The mixture of several predictors of the same tokens, with these weights."""

    def __init__(self, predictors: Sequence[Predictor], weights: Sequence[float]) -> None:
        self.predictors, self.weights = tuple(predictors), tuple(weights)
        self.vocab_size = max(predictor.vocab_size for predictor in predictors)

    def reset(self, slot: int) -> None:
        """Empty a slot."""
        for predictor in self.predictors:
            predictor.reset(slot)

    def append(self, slots: Integers, tokens: Integers) -> None:
        """Append a token to the text of each slot."""
        for predictor in self.predictors:
            predictor.append(slots, tokens)
        self.scales = [
            weight * UNIT / predictor.cumulate(slots, _ends(predictor, slots))
            for predictor, weight in zip(self.predictors, self.weights, strict=True)
        ]

    def cumulate(self, slots: Integers, places: Integers) -> Integers:
        """Sum the numbers of all tokens below each of the places (N, width)."""
        result = numpy.minimum(places, self.vocab_size)
        for predictor, scale in zip(self.predictors, self.scales, strict=True):
            result = result + (predictor.cumulate(slots, places) * scale).astype(numpy.int64)
        return result


def quantize(probabilities: Tensor) -> Integers:
    """Return the sums (N, V + 1) of the whole numbers of the tokens before each one."""
    rows, size = probabilities.shape
    if not (compiled := _compile()):
        sums = torch.zeros(rows, size + 1, dtype=torch.int64)
        torch.cumsum((probabilities.float() * UNIT).long() + 1, dim=1, out=sums[:, 1:])
        return sums.numpy()
    numbers = numpy.empty((rows, size + 1), dtype=numpy.int64)
    given = Address(probabilities.float().contiguous(), (rows, size), torch.float32)
    compiled.quantize(given, rows, size, UNIT, numbers.ctypes.data)
    return numbers


@cache
def _compile() -> ctypes.CDLL | None:
    library = compile_source(QUANTIZE_SOURCE)
    if library:
        library.quantize.argtypes = [c_void_p, c_int64, c_int64, c_float, c_void_p]
        library.quantize.restype = None
    return library


def _ends(predictor: Predictor, slots: Integers) -> Integers:
    return numpy.full((len(slots), 1), predictor.vocab_size)
