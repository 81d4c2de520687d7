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

ROWS_AT_ONCE = 2**15  # what is computed of them stays in the processor's cache

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
    level = unigram_level(
        numpy.bincount(ids, minlength=vocab_size), int(ids[starts[0]]), len(starts)
    )
    yield level
    rows: IntArray = ids  # the row of the n-gram that begins at each position
    known = checkpoints.load() if checkpoints else []
    for arrays in known:
        rows = arrays.pop("rows")
        level = TrieLevel(**arrays)
        yield level
    fits = numpy.ones(len(ids), dtype=bool)  # where an n-gram of this order begins: with 2 tokens,
    fits[numpy.append(starts[1:], len(ids)) - 1] = False  # at all but the last of each document
    for size in range(2, order + 1):
        if size > 2:
            fits[:-1] &= fits[1:]
        if size < len(known) + 2:
            continue
        at = numpy.flatnonzero(fits).astype(numpy.int32)
        if len(at) == 0:
            return
        keys, placed = sort_with_positions(_pack_windows(rows, ids, fits, size, vocab_size), at)
        level, rows = _make_level(keys, placed, rows, level, vocab_size)
        if checkpoints:
            checkpoints.save(size, {**vars(level), "rows": rows})
        yield level


def _pack_windows(
    rows: IntArray, ids: IntArray, fits: NDArray[numpy.bool_], size: int, vocab_size: int
) -> NDArray[numpy.int64]:
    """Make the keys of the n-grams that begin where `fits` says, in the order of the text."""
    keys = numpy.empty(numpy.count_nonzero(fits), dtype=numpy.int64)
    done = 0
    for start in range(0, len(ids) - size + 1, ROWS_AT_ONCE):
        piece = slice(start, min(start + ROWS_AT_ONCE, len(ids) - size + 1))
        last = ids[start + size - 1 : piece.stop + size - 1]
        found = pack_keys(rows[piece], last, vocab_size)[fits[piece]]
        keys[done : done + len(found)] = found
        done += len(found)
    return keys


def _make_level(
    keys: NDArray[numpy.int64], placed: IntArray, rows: IntArray, below: TrieLevel, vocab_size: int
) -> tuple[TrieLevel, IntArray]:
    """Make a level of its sorted keys and their places in the text.

    `rows` holds each place's row in the level below; returned with the level are those in it.
    """
    is_new = numpy.empty(len(keys), dtype=bool)
    is_new[0] = True
    numpy.not_equal(keys[1:], keys[:-1], out=is_new[1:])
    first = numpy.flatnonzero(is_new).astype(numpy.int32)
    level = TrieLevel(
        tokens=numpy.empty_like(first),
        parents=numpy.empty_like(first),
        counts=numpy.diff(first, append=numpy.int32(len(keys))),
        suffixes=numpy.empty_like(first),
        opens=numpy.empty(len(first), dtype=bool),
    )
    number = numpy.zeros_like(rows)
    done = 0
    for start in range(0, len(keys), ROWS_AT_ONCE):
        piece = slice(start, start + ROWS_AT_ONCE)
        # numpy's own type of index, which it would otherwise make of the whole at once.
        places, new = placed[piece].astype(numpy.intp), is_new[piece]
        row = numpy.cumsum(new, dtype=numpy.int32)
        row += done - 1
        number[places] = row
        made = slice(done, int(row[-1]) + 1)
        parents, level.tokens[made] = unpack_keys(keys[piece][new], vocab_size)
        level.parents[made] = parents
        level.suffixes[made] = rows[places[new] + 1]
        level.opens[made] = below.opens[parents]
        done = made.stop
    return level, number


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
