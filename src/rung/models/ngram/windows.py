"""The windows of a text: the n-grams at all its places, counted one order after another.

`counting.c` makes the windows of an order from those of the order below, in two passes over them.
Where there is no compiler, numpy sorts a key for each, which takes several times as long.
"""

import ctypes
from ctypes import c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy
from numpy.typing import NDArray

from rung.compiler import compile_source
from rung.device import count_cores

SOURCE = Path(__file__).with_name("counting.c")
OPENS = numpy.uint32(1 << 31)  # as in counting.c
MIN_PART = 2**16  # windows that are worth another thread

IntArray = NDArray[numpy.integer]
Numbers = NDArray[numpy.int32]


@dataclass(frozen=True, kw_only=True)
class TrieLevel:
    """The n-grams of one order: a level of the trie, sorted by parent and token.

    `counts` are occurrences. `suffixes` is the row, in the level below, of all tokens but the
    first; at order 1 there is none. `opens` says which n-grams begin with the token that opens
    documents.
    """

    tokens: IntArray
    parents: IntArray
    counts: IntArray
    suffixes: IntArray
    opens: NDArray[numpy.bool_]

    def __len__(self) -> int:
        return len(self.tokens)


class KeyedWindows:
    """The row of the n-gram at every place of the text, and a key for each that numpy sorts."""

    def __init__(self, tokens: IntArray, starts: NDArray[numpy.int64], level: TrieLevel) -> None:
        """Begin with single tokens (N,), which are the rows of `level`."""
        self.ids, self.starts, self.vocab_size = tokens.astype(numpy.int32), starts, len(level)
        self.resume(level, self.ids, 1)

    def resume(self, level: TrieLevel, rows: Numbers, size: int) -> None:
        """Go on from a level of `size` tokens; `rows` (N,) are its rows in the text."""
        self.level, self.rows, self.size = level, rows, size

    def extend(self) -> TrieLevel | None:
        """Count the n-grams of one more token; return None where no document is as long."""
        at = _find_places(self.starts, len(self.ids), self.size + 1)
        if not len(at):
            return None
        keys = pack_keys(self.rows[at], self.ids[at + self.size], self.vocab_size)
        found, first, numbers, counts = numpy.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        parents, tokens = unpack_keys(found, self.vocab_size)
        level = TrieLevel(
            tokens=tokens,
            parents=parents,
            counts=counts.astype(numpy.int32),
            suffixes=self.rows[at[first] + 1],
            opens=self.level.opens[parents],
        )
        rows = numpy.zeros_like(self.ids)
        rows[at] = numbers
        self.resume(level, rows, self.size + 1)
        return level

    def list_rows(self) -> Numbers:
        """Return the row of the n-gram at every place (N,), 0 where none fits."""
        return self.rows


class SortedWindows:
    """The windows of one order, sorted by their n-grams, as `counting.c` makes them.

    The first `count` of `windows` (N, 2) have a row and a place each. `first` (V + 1) is the first
    row in the level of each token's n-grams.
    """

    def __init__(
        self,
        compiled: ctypes.CDLL,
        tokens: IntArray,
        starts: NDArray[numpy.int64],
        level: TrieLevel,
    ) -> None:
        """Begin with single tokens (N,), which are the rows of `level`."""
        self.compiled, self.starts, self.level = compiled, starts, level
        self.opening = int(tokens[starts[0]])
        self.before = numpy.empty(len(tokens) + 1, dtype=numpy.uint32)
        self.before[1:] = tokens
        self.before[[0, -1]] |= OPENS
        self.before[starts] |= OPENS
        self.windows, self.sorted = numpy.empty((2, len(tokens), 2), dtype=numpy.uint32)
        self.chosen = numpy.empty(len(tokens), dtype=numpy.uint32)  # scratch of `sort_windows`
        self.count, self.size, self.first = len(tokens), 1, numpy.arange(len(level) + 1)
        self._sort(None)

    def resume(self, level: TrieLevel, rows: Numbers, size: int) -> None:
        """Go on from a level of `size` tokens; `rows` (N,) are its rows in the text."""
        at = _find_places(self.starts, len(rows), size)
        at = at[numpy.argsort(rows[at], kind="stable")]
        self.windows[: len(at), 0], self.windows[: len(at), 1] = rows[at], at
        bounds = numpy.searchsorted(self.before[at + 1] & ~OPENS, numpy.arange(len(self.first)))
        self.first = numpy.append(rows[at], len(level))[bounds].astype(numpy.int64)
        self.count, self.level, self.size = len(at), level, size

    def extend(self) -> TrieLevel | None:
        """Count the n-grams of one more token; return None where no document is as long."""
        bounds = self._sort(self.windows.ctypes.data)
        if not self.count:
            return None
        vocab_size, below = len(bounds) - 1, self.level
        sorted_windows = self.windows.ctypes.data, bounds.ctypes.data
        first = numpy.empty_like(bounds)
        self.compiled.count_rows(vocab_size, *sorted_windows, first.ctypes.data)
        known = [below.tokens, below.parents, below.suffixes]
        made = [numpy.empty(first[-1], dtype=numpy.int32) for _ in range(4)]
        self.compiled.make_level(
            *(vocab_size, self.size == 1, *sorted_windows, first.ctypes.data),
            *(self.first.ctypes.data, *(part.ctypes.data for part in known + made)),
        )
        opens = numpy.zeros(first[-1], dtype=bool)
        opens[first[self.opening] : first[self.opening + 1]] = True
        names = ("tokens", "parents", "counts", "suffixes")
        self.level = TrieLevel(**dict(zip(names, made, strict=True)), opens=opens)
        self.first, self.size = first, self.size + 1
        return self.level

    def list_rows(self) -> Numbers:
        """Return the row of the n-gram at every place (N,), 0 where none fits."""
        rows = numpy.zeros(len(self.chosen), dtype=numpy.int32)
        rows[self.windows[: self.count, 1]] = self.windows[: self.count, 0]
        return rows

    def _sort(self, shorter: int | None) -> NDArray[numpy.int64]:
        """Make the windows of one more token; return the first window of each token (V + 1)."""
        bounds = numpy.empty_like(self.first)
        parts = min(count_cores(), 1 + self.count // MIN_PART)
        failed = self.compiled.sort_windows(
            *(parts, self.count, shorter, self.before.ctypes.data, len(bounds) - 1),
            *(part.ctypes.data for part in (self.sorted, bounds, self.chosen)),
        )
        if failed:
            raise MemoryError(f"no memory to sort {self.count:,} n-grams")
        self.windows, self.sorted = self.sorted, self.windows
        self.count = int(bounds[-1])
        return bounds


def make_windows(
    tokens: IntArray, starts: NDArray[numpy.int64], level: TrieLevel
) -> KeyedWindows | SortedWindows:
    """Make the windows of single tokens, in C where there is a compiler."""
    library = _compile()
    if library is None:
        return KeyedWindows(tokens, starts, level)
    return SortedWindows(library, tokens, starts, level)


def pack_keys(parents: IntArray, tokens: IntArray, vocab_size: int) -> NDArray[numpy.int64]:
    """Join each (parent, token) into one number that sorts as the pair does."""
    keys = parents.astype(numpy.int64)
    keys <<= _bits(vocab_size)
    keys |= tokens
    return keys


def unpack_keys(keys: NDArray[numpy.int64], vocab_size: int) -> tuple[Numbers, Numbers]:
    """Return the parents and tokens that `pack_keys` joined."""
    bits = _bits(vocab_size)
    return (keys >> bits).astype(numpy.int32), (keys & ((1 << bits) - 1)).astype(numpy.int32)


def _bits(size: int) -> int:
    """The bits that every number below `size` fits into."""
    return max(1, (size - 1).bit_length())


def _find_places(starts: NDArray[numpy.int64], tokens: int, size: int) -> NDArray[numpy.int64]:
    """Find where an n-gram of `size` tokens begins: it ends in the same document."""
    fits = numpy.ones(tokens, dtype=bool)
    ends = numpy.append(starts[1:], tokens)
    for distance in range(1, size):
        at = ends - distance
        fits[at[at >= starts]] = False
    return numpy.flatnonzero(fits)


@cache
def _compile() -> ctypes.CDLL | None:
    library = compile_source(SOURCE)
    if library is not None:
        library.sort_windows.argtypes = [c_int64, c_int64, c_void_p, c_void_p, c_int64]
        library.sort_windows.argtypes += [c_void_p] * 3
        library.sort_windows.restype = c_int
        library.count_rows.argtypes = [c_int64, *[c_void_p] * 3]
        library.make_level.argtypes = [c_int64, c_int, *[c_void_p] * 11]
        library.count_rows.restype = library.make_level.restype = None
    return library
