"""Discounts: the share of each count that is given to n-grams which were not seen."""

import ctypes
import logging
from ctypes import c_double, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy
from numpy.typing import NDArray

from rung.compiler import compile_source

SOURCE = Path(__file__).with_name("smoothing.c")

logger = logging.getLogger(__name__)

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # what lmplz --discount_fallback uses
BINCOUNT_ROWS = 2**24  # rows counted at once: numpy makes a 64-bit copy of them


def choose_discounts(counts: NDArray[numpy.integer], order: int, smoothing: str) -> list[float]:
    """The discounts of counts 1, 2, ... under `smoothing`; the last serves all higher counts.

    The list is empty where a smoothing takes nothing.
    """
    if smoothing == "kneser-ney":
        return estimate_discounts(counts, order)
    if smoothing == "absolute":
        once, twice, *_ = counts_of_counts(counts)
        return [absolute_discount(once, twice)]
    return []


def estimate_discounts(counts: NDArray[numpy.integer], order: int) -> list[float]:
    """D1, D2, D3+ from the counts of counts (Chen & Goodman 1998, equation 26).

    Where one is undefined or out of range, as in small or odd texts, all are 0.5, 1, 1.5, and the
    log says so. A discount of 0 is out of range: it would leave nothing for unseen n-grams.
    """
    t1, t2, t3, t4 = counts_of_counts(counts)
    if min(t1, t2, t3) > 0:
        y = t1 / (t1 + 2 * t2)
        found = [1 - 2 * y * t2 / t1, 2 - 3 * y * t3 / t2, 3 - 4 * y * t4 / t3]
        if all(0 < d <= j for j, d in enumerate(found, start=1)):
            return found
    logger.info(
        "order %d: counts of counts %d, %d, %d, %d leave a discount undefined; using 0.5, 1, 1.5",
        order,
        t1,
        t2,
        t3,
        t4,
    )
    return list(FALLBACK_DISCOUNTS)


def absolute_discount(once: int, twice: int) -> float:
    """One discount for all counts, from how many n-grams occur once and twice.

    Ney et al. 1994, section 3.
    """
    return once / (once + 2 * twice) if once else FALLBACK_DISCOUNTS[0]


def counts_of_counts(counts: NDArray[numpy.integer]) -> list[int]:
    """Count the n-grams that occur once, twice, three and four times."""
    total = numpy.zeros(6, dtype=numpy.int64)
    if counts.dtype == numpy.int32 and (library := compile_smoothing()):
        library.count_counts(len(counts), counts.ctypes.data, total.ctypes.data)
        return total[1:5].tolist()
    for start in range(0, len(counts), BINCOUNT_ROWS):
        total += numpy.bincount(
            numpy.clip(counts[start : start + BINCOUNT_ROWS], 0, 5), minlength=6
        )
    return total[1:5].tolist()


def count_occurrences(rows: NDArray[numpy.integer], size: int) -> NDArray[numpy.integer]:
    """Count how often each of `size` rows occurs, as numbers of the type of `rows`."""
    total = numpy.zeros(size, dtype=rows.dtype)
    if rows.dtype == numpy.int32 and (library := compile_smoothing()):
        library.count_rows(len(rows), rows.ctypes.data, total.ctypes.data)
        return total
    for start in range(0, len(rows), BINCOUNT_ROWS):
        part = rows[start : start + BINCOUNT_ROWS]
        total += numpy.bincount(part, minlength=size).astype(rows.dtype)
    return total


@cache
def compile_smoothing() -> ctypes.CDLL | None:
    """Compile `smoothing.c`; return None where there is no compiler."""
    library = compile_source(SOURCE)
    if library is not None:
        library.count_counts.argtypes = [c_int64, c_void_p, c_void_p]
        library.count_rows.argtypes = [c_int64, c_void_p, c_void_p]
        library.smooth.argtypes = [c_int64, c_int64, c_int32, *[c_void_p] * 4]
        library.smooth.argtypes += [c_double, c_int, c_double, c_void_p, c_void_p]
        for function in (library.count_counts, library.count_rows, library.smooth):
            function.restype = None
    return library
