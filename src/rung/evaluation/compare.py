"""Compare two costs of the same documents: their paired difference, with its interval."""

import math
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike

from rung.evaluation.metrics import confidence_interval


@dataclass(frozen=True)
class PairedDifference:
    """A difference in bits per byte and the ends of its 95% interval.

    All are None where a cost is infinite; the ends also where there are fewer than two documents.
    """

    mean: float | None
    low: float | None
    high: float | None


def paired_difference(
    nats: ArrayLike, baseline: ArrayLike, sizes: ArrayLike, keys: ArrayLike | None = None
) -> PairedDifference:
    """Return how many bits per byte `nats` are above `baseline`.

    Each argument has one value for each document: its nats under either, its size in bytes, and a
    key that copies of a document share. The interval draws documents with both of their costs, so
    that what is hard for both does not widen it.
    """
    with numpy.errstate(invalid="ignore"):  # infinity less infinity
        gains = (numpy.asarray(nats) - numpy.asarray(baseline)) / math.log(2)
    interval = confidence_interval(gains, sizes, keys)
    is_finite = bool(numpy.isfinite(gains).all())
    mean = gains.sum().item() / int(numpy.sum(sizes)) if is_finite else None
    return PairedDifference(mean, interval.low, interval.high)
