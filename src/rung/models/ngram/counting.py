"""Every n-gram of a text and how often it occurs, by sorting: no dictionary, no loop over n-grams.

An n-gram of order k is a row of level k: its first k-1 tokens are a row of level k-1 (its parent), and the
rows are sorted by parent and last token, so that the children of one row stand together. That is a trie,
and it is what the model is queried by.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Ids = NDArray[numpy.integer]


@dataclass(frozen=True, kw_only=True)
class Level:
    """The n-grams of one order, sorted by parent and token.

    `counts` are raw. `suffixes` is the row, one level down, of all tokens but the first; at order 1 there is
    none. `opens` says which n-grams begin with the token that opens documents.
    """

    tokens: Ids
    parents: Ids
    counts: NDArray[numpy.int64]
    suffixes: Ids
    opens: NDArray[numpy.bool_]

    def __len__(self) -> int:
        return len(self.tokens)


def count_ngrams(tokens: Ids, starts: NDArray[numpy.int64], order: int, vocab_size: int) -> Iterator[Level]:
    """Levels 1, 2, ..., `order` of `tokens` (N,), whose documents begin at `starts`; no n-gram spans two.

    Ends early where no document is as long. Level 1 has a row for every token of the vocabulary.
    """
    ids = tokens.astype(numpy.int32)
    ends = numpy.append(starts[1:], len(ids))
    last = numpy.repeat(ends, ends - starts)  # where each position's document ends
    level = unigrams(ids, vocab_size, int(ids[starts[0]]))
    yield level
    rows = ids  # of the n-gram that begins at each position
    at = numpy.arange(len(ids), dtype=numpy.int32)  # the positions where one of this order does
    for size in range(2, order + 1):
        at = at[at + size <= last[at]]
        if len(at) == 0:
            return
        extended, of_positions = _extend(rows[at], ids[at + (size - 1)], level.counts, vocab_size)
        example = numpy.empty(len(extended.tokens), dtype=numpy.int32)
        example[of_positions] = at
        level = Level(
            tokens=extended.tokens,
            parents=extended.parents,
            counts=extended.counts,
            suffixes=rows[example + 1],
            opens=level.opens[extended.parents],
        )
        yield level
        rows = numpy.empty(len(ids), dtype=numpy.int32)
        rows[at] = of_positions


def unigrams(ids: Ids, vocab_size: int, opening: int) -> Level:
    """Level 1: a row for every token, seen or not."""
    everything = numpy.arange(vocab_size, dtype=numpy.int32)
    return Level(
        tokens=everything,
        parents=numpy.zeros(vocab_size, dtype=numpy.int32),
        counts=numpy.bincount(ids, minlength=vocab_size),
        suffixes=numpy.zeros(vocab_size, dtype=numpy.int32),
        opens=everything == opening,
    )


@dataclass(frozen=True)
class _Extended:
    tokens: Ids
    parents: Ids
    counts: NDArray[numpy.int64]


def _extend(
    parents: Ids, tokens: Ids, parent_counts: NDArray[numpy.int64], vocab_size: int
) -> tuple[_Extended, NDArray[numpy.int32]]:
    """Distinct (parent, token) pairs, sorted, and which of them each occurrence is.

    A parent that occurs once has one child, whose place is known: only the others are sorted, and that is
    a quarter of a text at order 5.
    """
    often = parent_counts[parents] > 1
    keys = parents[often].astype(numpy.int64) * vocab_size + tokens[often]
    found, which, counts = run_lengths(keys)
    shared, once = (found // vocab_size).astype(numpy.int32), parents[~often]
    is_once = numpy.zeros(len(parent_counts), dtype=bool)
    is_once[once] = True
    children = numpy.bincount(shared, minlength=len(parent_counts)) + is_once
    first = numpy.cumsum(children) - children  # the row of each parent's first child
    place = numpy.arange(len(found)) + numpy.cumsum(is_once)[shared]
    size = len(found) + len(once)
    result = _Extended(
        tokens=numpy.empty(size, dtype=numpy.int32),
        parents=numpy.empty(size, dtype=numpy.int32),
        counts=numpy.ones(size, dtype=numpy.int64),
    )
    result.tokens[place], result.parents[place], result.counts[place] = found % vocab_size, shared, counts
    result.tokens[first[once]], result.parents[first[once]] = tokens[~often], once
    of_occurrences = numpy.empty(len(parents), dtype=numpy.int32)
    of_occurrences[often] = place[which]
    of_occurrences[~often] = first[once]
    return result, of_occurrences


def run_lengths(
    keys: NDArray[numpy.int64],
) -> tuple[NDArray[numpy.int64], NDArray[numpy.int32], NDArray[numpy.int64]]:
    """Distinct keys in order, which of them each key is, and how often each occurs."""
    order = numpy.argsort(keys)
    ordered = keys[order]
    is_new = numpy.empty(len(keys), dtype=bool)
    is_new[:1] = True
    numpy.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    at = numpy.flatnonzero(is_new)
    which = numpy.empty(len(keys), dtype=numpy.int32)
    which[order] = numpy.cumsum(is_new, dtype=numpy.int32) - 1
    return ordered[at], which, numpy.diff(numpy.append(at, len(keys)))
