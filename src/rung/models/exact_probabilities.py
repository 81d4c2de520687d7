"""The probabilities of rungs that count as whole numbers, the same ones on every machine.

A text that is coded under a model comes back only if its reader computes the same numbers to the
last bit. Here they are the cumulative probability of a token's id, F(m | h) = Σ P(w | h) over
w < m, which interpolation makes cheap: with the history h' without its first token,

    F(m | h) = Σ own(w | h) over w < m after h  +  weight(h) F(m | h')

so it needs a search in the list of the tokens that followed h, and in that of each shorter history,
whatever the size of the vocabulary. `own` is what the n-gram has beyond its weight of the lower
order. Only whole numbers and single products of float64 are used, which IEEE 754 defines.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray

from rung.compiler import compile_source
from rung.models.lookup import lower_bound

SOURCE = Path(__file__).with_name("exact_probabilities.c")

Integers = NDArray[numpy.int64]
Reals = NDArray[numpy.float64]


@dataclass(frozen=True)
class TrieLevel:
    """The n-grams of one order as children of their histories.

    The children of history h are the rows `first[h]` to `first[h + 1]`, sorted by `tokens`. `own`
    (children + 1) sums their numbers before each row; `weight` is that of each history.
    """

    first: Integers
    tokens: NDArray[numpy.int32]
    own: Integers
    weight: Reals


class ExactProbabilities:
    """Texts in slots, and the cumulative probabilities of the next token of each.

    `unigrams` (V + 1) are the cumulative numbers of no history. `slack` is added for each token: at
    least 1 more than what rounding can take from one.
    """

    def __init__(self, unigrams: Integers, levels: Sequence[TrieLevel], slack: int) -> None:
        self.vocab_size = len(unigrams) - 1
        self.unigrams, self.levels, self.slack = unigrams, tuple(levels), slack
        self.rows: Integers = numpy.empty((0, len(self.levels)), dtype=numpy.int64)
        self.compiled = _compile()
        parts = [(each.first, each.tokens, each.own, each.weight) for each in self.levels]
        described = [_Level(*(part.ctypes.data for part in level)) for level in parts]
        self.described = _Trie(
            *(len(parts), self.vocab_size, slack, unigrams.ctypes.data),
            (_Level * len(parts))(*described),
        )

    def reset(self, slot: int) -> None:
        """Empty a slot: what is appended next opens a text."""
        if slot >= len(self.rows):
            more = numpy.full((slot + 1 - len(self.rows), self.rows.shape[1]), -1)
            self.rows = numpy.concatenate([self.rows, more])
        self.rows[slot] = -1

    def append(self, slots: Integers, tokens: Integers) -> None:
        """Append a token to the text of each slot."""
        if self.compiled:
            self.compiled.advance(
                byref(self.described),
                *(len(slots), slots.ctypes.data, tokens.ctypes.data, self.rows.ctypes.data),
            )
            return
        before = self.rows[slots]
        for order, level in enumerate(self.levels[:-1], start=1):
            parents = before[:, order - 1]
            begin, end = _children(level, parents)
            row = _search(level, begin, end, tokens)
            found = (
                level.tokens[numpy.minimum(row, len(level.tokens) - 1)] if len(level.tokens) else -1
            )
            self.rows[slots, order] = numpy.where((row < end) & (found == tokens), row, -1)
        if self.levels:
            self.rows[slots, 0] = tokens

    def cumulate(self, slots: Integers, places: Integers) -> Integers:
        """Sum the numbers of all tokens below each of the places (N, width), which must rise."""
        if self.compiled:
            result = numpy.empty_like(places)
            self.compiled.cumulate(
                byref(self.described),
                *(*places.shape, slots.ctypes.data, places.ctypes.data),
                *(self.rows.ctypes.data, result.ctypes.data),
            )
            return result
        inside = numpy.minimum(places, self.vocab_size)
        result = self.unigrams[inside]
        for order, level in enumerate(self.levels):
            histories = self.rows[slots, order]
            begin, end = _children(level, histories)
            first, last = (
                numpy.repeat(part[:, None], places.shape[1], axis=1) for part in (begin, end)
            )
            row = _search(level, first, last, inside)
            weighted = (level.weight[histories][:, None] * result).astype(numpy.int64)
            deeper = weighted + level.own[row] - level.own[begin][:, None]
            result = numpy.where(histories[:, None] < 0, result, deeper)
        return result + self.slack * inside


def exponentiate_base_10(values: NDArray[numpy.floating]) -> Reals:
    """Return 10 to each value by sums and products alone, which are the same on every machine.

    The mathematics library of a machine may round another way in the last bit.
    """
    log2_10, ln2 = 3.321928094887362, 0.6931471805599453
    exponents = numpy.maximum(values.astype(numpy.float64), -300.0) * log2_10
    whole = numpy.rint(exponents)
    rest = (exponents - whole) * ln2  # within ±0.35, where 17 terms of the series are exact
    result = numpy.ones_like(rest)
    for term in range(17, 0, -1):
        result = result * rest
        result = result / term
        result = result + 1.0
    return numpy.where(numpy.isneginf(values), 0.0, numpy.ldexp(result, whole.astype(numpy.int32)))


def sum_before(numbers: Integers) -> Integers:
    """Return the sum before each number and the sum of all (N + 1), which may wrap around."""
    sums = numpy.zeros(len(numbers) + 1, dtype=numpy.int64)
    numpy.cumsum(numbers, out=sums[1:])
    return sums


def _children(level: TrieLevel, histories: Integers) -> tuple[Integers, Integers]:
    """Return the first child of each history and the end of its children; none of history -1."""
    known = numpy.maximum(histories, 0)
    begin = level.first[known]
    return begin, numpy.where(histories < 0, begin, level.first[known + 1])


def _search(level: TrieLevel, begin: Integers, end: Integers, tokens: Integers) -> Integers:
    table = torch.from_numpy(level.tokens)
    if not len(table):
        return end
    parts = (torch.from_numpy(part.reshape(-1)) for part in (begin, end, tokens))
    return lower_bound(lambda rows: table[rows], *parts).numpy().reshape(tokens.shape)


class _Level(Structure):
    _fields_ = [(name, c_void_p) for name in ("first", "tokens", "own", "weight")]


class _Trie(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("levels", "vocabulary", "slack")),
        *(("unigrams", c_void_p), ("level", POINTER(_Level))),
    ]


@cache
def _compile() -> ctypes.CDLL | None:
    library = compile_source(SOURCE)
    if library:
        library.advance.argtypes = [c_void_p, c_int64, c_void_p, c_void_p, c_void_p]
        library.cumulate.argtypes = [c_void_p, c_int64, c_int64, *[c_void_p] * 4]
        library.advance.restype = library.cumulate.restype = None
    return library
