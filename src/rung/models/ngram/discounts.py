"""How much is taken away from a count, to be shared out among what was never seen."""

import logging

import numpy
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # what lmplz --discount_fallback uses
BINCOUNT_ROWS = 2**24  # rows tallied at once: numpy makes 64-bit copies of what it counts


def choose_discounts(counts: NDArray[numpy.integer], order: int, smoothing: str) -> list[float]:
    """What `smoothing` takes from a count of 1, 2, ...; the last serves all higher ones. Empty:
    nothing.
    """
    if smoothing == "kneser-ney":
        return estimate_discounts(counts, order)
    if smoothing == "absolute":
        once, twice, *_ = counts_of_counts(counts)
        return [absolute_discount(once, twice)]
    return []


def estimate_discounts(counts: NDArray[numpy.integer], order: int) -> list[float]:
    """D1, D2, D3+ from the counts of counts (Chen & Goodman 1998, equation 26).

    Where these are undefined or out of range, which small or odd texts make them, the fixed
    discounts 0.5, 1, 1.5 stand in, and the log says so. A discount of 0 is out of range: it would
    leave nothing for what was not seen.
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
    """One discount for all counts, from how many n-grams occur once and twice (Ney et al. 1994,
    section 3).
    """
    return once / (once + 2 * twice) if once else FALLBACK_DISCOUNTS[0]


def counts_of_counts(counts: NDArray[numpy.integer]) -> list[int]:
    """How many n-grams occur once, twice, three and four times."""
    total = numpy.zeros(6, dtype=numpy.int64)
    for start in range(0, len(counts), BINCOUNT_ROWS):
        total += numpy.bincount(
            numpy.clip(counts[start : start + BINCOUNT_ROWS], 0, 5), minlength=6
        )
    return total[1:5].tolist()
