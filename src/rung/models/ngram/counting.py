"""Every n-gram of a text and how often it occurs, by sorting: no dictionary, no loop over n-grams.

An n-gram of order k is a row of level k: its first k-1 tokens are a row of level k-1 (its parent),
and the rows are sorted by parent and last token, so that the children of one row stand together.
That is a trie, and it is what the model is queried by.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from rung.errors import RecipeError
from rung.models.ngram.checkpoints import OrderCheckpoints

IntArray = NDArray[numpy.integer]


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


TrieLevels = Generator[TrieLevel, None, None]
# A function that counts as `count_ngrams` does.
CountFunction = Callable[[IntArray, NDArray[numpy.int64], int, int], TrieLevels]


def count_ngrams(
    tokens: IntArray,
    starts: NDArray[numpy.int64],
    order: int,
    vocab_size: int,
    checkpoints: OrderCheckpoints | None = None,
) -> TrieLevels:
    """Count the n-grams of `tokens` (N,), whose documents begin at `starts`: levels 1 to `order`.

    No n-gram spans two documents, and the levels end where no document is as long. Level 1 has a
    row for every token of the vocabulary. Orders in `checkpoints` are not counted again, and each
    one that is counted is saved there. Raises `RecipeError` for a text whose positions do not fit
    into 32 bits.
    """
    if len(tokens) >= 2**31:
        raise RecipeError(
            f"{len(tokens):,} tokens are too many to count in memory: add "
            "--set counting.memory=8GB, and they go to disk"
        )
    ids = tokens.astype(numpy.int32)
    ends = numpy.append(starts[1:], len(ids)).astype(numpy.int32)
    level = unigram_level(
        numpy.bincount(ids, minlength=vocab_size), int(ids[starts[0]]), len(starts)
    )
    yield level
    # Positions at which an n-gram of this order begins, and the end of each one's document.
    at = numpy.arange(len(ids), dtype=numpy.int32)
    end = numpy.repeat(ends, numpy.diff(starts, append=len(ids)))
    rows = ids  # the row of the n-gram that begins at each position
    known = checkpoints.load() if checkpoints else []
    for arrays in known:
        rows = arrays.pop("rows")
        level = TrieLevel(**arrays)
        yield level
    rows = numpy.array(rows)
    for size in range(len(known) + 2, order + 1):
        fits = at + size <= end
        at, end = at[fits], end[fits]
        if len(at) == 0:
            return
        keys, placed = sort_with_positions(
            pack_keys(rows[at], ids[at + (size - 1)], vocab_size), at
        )
        level = _make_level(keys, placed, rows, level, vocab_size)
        if checkpoints:
            checkpoints.save(size, {**vars(level), "rows": rows})
        yield level


def _make_level(
    keys: NDArray[numpy.int64], placed: IntArray, rows: IntArray, below: TrieLevel, vocab_size: int
) -> TrieLevel:
    """Make a level of its sorted keys and their places in the text.

    `rows` holds each place's row in the level below, and is overwritten with its row in this one.
    """
    is_new = numpy.empty(len(keys), dtype=bool)
    is_new[0] = True
    numpy.not_equal(keys[1:], keys[:-1], out=is_new[1:])
    first = numpy.flatnonzero(is_new).astype(numpy.int32)
    parents, last_tokens = unpack_keys(keys[first], vocab_size)
    level = TrieLevel(
        tokens=last_tokens,
        parents=parents,
        counts=numpy.diff(first, append=numpy.int32(len(keys))),
        suffixes=rows[placed[first] + 1],
        opens=below.opens[parents],
    )
    number = numpy.cumsum(is_new, dtype=numpy.int32)
    rows[placed] = numpy.subtract(number, 1, out=number)
    return level


def unigram_level(counts: IntArray, opening: int, documents: int) -> TrieLevel:
    """Make level 1: a row for every token, seen or not.

    `opening` is not counted where it opens a document: nothing predicts it there.
    """
    everything = numpy.arange(len(counts), dtype=numpy.int32)
    return TrieLevel(
        tokens=everything,
        parents=numpy.zeros(len(counts), dtype=numpy.int32),
        counts=counts - documents * (everything == opening),
        suffixes=numpy.zeros(len(counts), dtype=numpy.int32),
        opens=everything == opening,
    )


def pack_keys(parents: IntArray, tokens: IntArray, vocab_size: int) -> NDArray[numpy.int64]:
    """Join each (parent, token) into one number that sorts as the pair does."""
    keys = parents.astype(numpy.int64)
    keys <<= _bits(vocab_size)
    keys |= tokens
    return keys


def unpack_keys(keys: NDArray[numpy.int64], vocab_size: int) -> tuple[IntArray, IntArray]:
    """Return the parents and tokens that `pack_keys` joined."""
    bits = _bits(vocab_size)
    return (keys >> bits).astype(numpy.int32), (keys & ((1 << bits) - 1)).astype(numpy.int32)


def sort_with_positions(
    keys: NDArray[numpy.int64], places: IntArray
) -> tuple[NDArray[numpy.int64], IntArray]:
    """Sort keys, and their places with them; overwrites `keys`.

    Where a key and its place fit into 63 bits they are sorted as one number: numpy's sort is ten
    times as fast as its argsort.
    """
    bits = _bits(int(places.max()) + 1)
    if int(keys.max()) >> (63 - bits):
        order = numpy.argsort(keys, kind="stable")
        return keys[order], places[order]
    keys <<= bits
    keys |= places
    keys.sort()
    ordered = (keys & ((1 << bits) - 1)).astype(places.dtype)
    keys >>= bits
    return keys, ordered


def _bits(size: int) -> int:
    """The bits that every number below `size` fits into."""
    return max(1, (size - 1).bit_length())
