"""The tables of an n-gram model, one for each order, and the arrays that the model has of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from rung.models.ngram.discounts import count_occurrences

MAX_STORED_COUNT = 255


@dataclass(frozen=True, kw_only=True)
class NgramTable:
    """One order of the model: its n-grams that were kept, with log10 of their probabilities."""

    tokens: NDArray[numpy.integer]
    parents: NDArray[numpy.integer]
    log10_probability: NDArray[numpy.float32]
    log10_backoff: NDArray[numpy.float32]  # of each row as a history
    counts: NDArray[numpy.uint8] | None = None  # at most `MAX_STORED_COUNT`; None: not known


def make_arrays(tables: list[NgramTable]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of a model by their names, which are of the tables where they can be."""
    for order, table in enumerate(tables, start=1):
        size = len(table.tokens)
        yield f"log10_probability_{order}", table.log10_probability
        counts = numpy.zeros(size, dtype=numpy.uint8) if table.counts is None else table.counts
        yield f"counts_{order}", counts
        if order > 1:
            in_file = isinstance(table.tokens, numpy.memmap)  # which is removed soon
            yield f"tokens_{order}", table.tokens.astype(numpy.int32, copy=in_file)
        if order < len(tables):
            yield f"log10_backoff_{order}", table.log10_backoff
            first = numpy.zeros(size + 1, dtype=numpy.int32)
            numpy.cumsum(count_occurrences(tables[order].parents, size), out=first[1:])
            yield f"first_{order}", first
