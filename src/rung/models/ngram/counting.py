"""Every n-gram of a text and how often it occurs, by sorting: no dictionary, no loop over n-grams.

An n-gram of order k is a row of level k: its first k-1 tokens are a row of level k-1 (its parent),
and the rows are sorted by parent and last token, so that the children of one row stand together.
That is a trie, and it is what the model is queried by.
"""

from collections.abc import Callable, Generator

import numpy
from numpy.typing import NDArray

from rung.errors import RecipeError
from rung.models.ngram.checkpoints import OrderCheckpoints
from rung.models.ngram.windows import IntArray, TrieLevel, make_windows

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
    counts = numpy.bincount(tokens, minlength=vocab_size)
    level = unigram_level(counts, int(tokens[starts[0]]), len(starts))
    yield level
    windows = make_windows(tokens, starts, level)
    known = checkpoints.load() if checkpoints else []
    for arrays in known:
        rows = arrays.pop("rows")
        level = TrieLevel(**arrays)
        yield level
    if known:
        windows.resume(level, rows, len(known) + 1)
    for size in range(len(known) + 2, order + 1):
        longer = windows.extend()
        if longer is None:
            return
        if checkpoints:
            checkpoints.save(size, {**vars(longer), "rows": windows.list_rows()})
        yield longer


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
