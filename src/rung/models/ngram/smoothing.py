"""From counts to probabilities: five ways to divide what was seen from what was not.

Each turns the counts of one order into every n-gram's own share of its history, and the weight with
which the history hands the rest down; the share plus the weight times the next lower order's
probability is the estimate. What differs is what they take away from a count, and what they divide
by:

    name             share of hw                   weight of h                 lower counts
    kneser-ney       (c - D(c)) / c(h)             sum of D(c) / c(h)          of tokens before
    absolute         (c - D) / c(h)                D n(h) / c(h)               occurrences
    witten-bell      c / (c(h) + n(h))             n(h) / (c(h) + n(h))        occurrences
    add-k            c / (c(h) + k V)              k V / (c(h) + k V)          none: all is uniform
    stupid-backoff   c / c(h), nothing added       0.4 where hw was not seen   occurrences

c(h) sums the counts after h and n(h) says how many different tokens came. Sources: Chen & Goodman
1998, sections 2.1, 2.5-2.7 and 3; Heafield et al. 2013, section 2; Ney et al. 1994; Witten & Bell
1991; Brants et al. 2007.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy
from numpy.typing import NDArray

from rung.errors import RecipeError
from rung.models.ngram.counting import TrieLevel
from rung.models.ngram.discounts import BINCOUNT_ROWS, choose_discounts

SMOOTHINGS = {
    "kneser-ney": "interpolated, modified: the one to beat",
    "absolute": "one discount for every count",
    "witten-bell": "as much for the unseen as there are different continuations",
    "add-k": "k more of everything, seen or not",
    "stupid-backoff": "relative frequency, else 0.4 times the shorter history's; sums to no fixed "
    "total",
}
STUPID_BACKOFF_WEIGHT = 0.4
ROWS_AT_ONCE = 2**17
MAX_STORED_COUNT = 255

Reals = NDArray[numpy.float64]
Counts = NDArray[numpy.integer]


@dataclass(frozen=True, kw_only=True)
class SmoothingSettings:
    """How to smooth: `smoothing` by name, `k` for add-k, the tokens that never follow anything.

    `prune[i]` drops n-grams of order i+1 seen so often or less; the last entry serves all higher
    orders.
    """

    smoothing: str = "kneser-ney"
    k: float = 1.0
    prune: tuple[int, ...] = ()
    excluded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.smoothing not in SMOOTHINGS:
            raise RecipeError(
                f"unknown smoothing {self.smoothing!r}: choose from {', '.join(SMOOTHINGS)}"
            )
        if not self.k > 0:
            raise RecipeError(f"k is {self.k}: it must be more than 0")
        if any(not isinstance(t, int) or t < 0 for t in self.prune) or list(self.prune) != sorted(
            self.prune
        ):
            raise RecipeError(
                f"prune is {list(self.prune)}: it must hold whole numbers that do not fall, as in "
                f"[0, 1]"
            )
        if self.prune[:1] > (0,):
            raise RecipeError(
                f"prune is {list(self.prune)}: its first entry must be 0, single tokens are always "
                f"kept"
            )

    def threshold(self, order: int) -> int:
        """N-grams of this order seen so often or less are dropped."""
        return self.prune[min(order, len(self.prune)) - 1] if self.prune else 0


@dataclass(frozen=True, kw_only=True)
class NgramTable:
    """One order of the model: its n-grams that were kept, and what they cost, in log10."""

    tokens: NDArray[numpy.integer]
    parents: NDArray[numpy.integer]
    log10_probability: NDArray[numpy.float32]
    log10_backoff: NDArray[numpy.float32]  # of each row as a history
    counts: NDArray[numpy.uint8] | None = (
        None  # what was smoothed, `MAX_STORED_COUNT` or more as that; None: not known
    )


def estimate_tables(
    levels: list[TrieLevel], settings: SmoothingSettings
) -> tuple[list[NgramTable], list[list[float]]]:
    """The tables of all orders, and the discounts of each (none where the smoothing has none)."""
    vocabulary = len(levels[0]) - len(settings.excluded)
    lower = numpy.full(1, 1.0 / vocabulary)
    tables: list[NgramTable] = []
    discounts: list[list[float]] = []
    kept_before: NDArray[numpy.bool_] | None = None
    for order, level in enumerate(levels, start=1):
        counts = _effective_counts(levels, order, settings)
        discounts.append(choose_discounts(counts, order, settings.smoothing))
        threshold = settings.threshold(order) if order > 1 else 0
        kept = level.counts > threshold if threshold else None
        is_highest = order == len(levels)
        exact = numpy.empty(0 if is_highest else len(level))  # what the next order is built on
        log10_probability = numpy.empty(len(level), dtype=numpy.float32)
        weight = numpy.empty(len(lower))
        for rows, histories in _group_by_history(level.parents, len(lower)):
            group = _HistoryGroup(
                parents=level.parents[rows] - histories.start,
                counts=counts[rows],
                taken=_find_discount(counts[rows], discounts[-1]),
                kept=None if kept is None else kept[rows],
                lower=lower[level.suffixes[rows]],
                histories=histories.stop - histories.start,
            )
            is_spread = settings.smoothing == "add-k" and not is_highest
            probability, weight[histories] = _smooth(
                group, settings, vocabulary, is_spread=is_spread
            )
            if order == 1:
                probability[list(settings.excluded)] = 0
            log10_probability[rows] = _log10(probability)
            if not is_highest:
                exact[rows] = probability
        if order > 1:
            tables[-1] = replace(tables[-1], log10_backoff=_log10(_select(weight, kept_before)))
        tables.append(_make_table(level, counts, log10_probability, kept, kept_before))
        lower, kept_before = exact, kept
    return tables, discounts


@dataclass(frozen=True, kw_only=True)
class _HistoryGroup:
    """N-grams of one order with all that share their histories, which are numbered from 0."""

    parents: NDArray[numpy.integer]
    counts: NDArray[numpy.integer]
    taken: Reals  # from each count
    kept: NDArray[numpy.bool_] | None  # None: all of them
    lower: Reals  # the next lower order's probability
    histories: int


def _group_by_history(
    parents: NDArray[numpy.integer], histories: int
) -> Iterator[tuple[slice, slice]]:
    """Rows, many at a time but none apart from its siblings, and the histories that they follow.

    What is computed of them stays in the processor's cache, and memory holds it only for so many.
    """
    row = history = 0
    while history < histories:
        ahead = row + ROWS_AT_ONCE
        next_history = int(parents[ahead]) if ahead < len(parents) else histories
        if next_history == history:  # one history with more children than that
            next_history += 1
        next_row = int(numpy.searchsorted(parents, next_history))
        yield slice(row, next_row), slice(history, next_history)
        row, history = next_row, next_history


def _smooth(
    group: _HistoryGroup, settings: SmoothingSettings, vocabulary: int, *, is_spread: bool
) -> tuple[Reals, Reals]:
    """The probability of each n-gram and the weight of each history; `is_spread`: as if nothing had
    been seen.
    """
    if is_spread:
        return group.lower, numpy.ones(group.histories)
    extra = _added_mass(group, settings, vocabulary)
    share, weight = _share_out(group, extra)
    if settings.smoothing == "stupid-backoff":
        scores = numpy.where(group.counts > 0, share, STUPID_BACKOFF_WEIGHT * group.lower)
        return scores, numpy.full(group.histories, STUPID_BACKOFF_WEIGHT)
    share += weight[group.parents] * group.lower
    return share, weight


def _make_table(
    level: TrieLevel,
    counts: Counts,
    log10_probability: NDArray[numpy.float32],
    kept: NDArray[numpy.bool_] | None,
    kept_before: NDArray[numpy.bool_] | None,
) -> NgramTable:
    parents = _select(level.parents, kept)
    tokens = _select(level.tokens, kept)
    return NgramTable(
        tokens=tokens,
        parents=parents if kept_before is None else (numpy.cumsum(kept_before) - 1)[parents],
        log10_probability=_select(log10_probability, kept),
        log10_backoff=numpy.zeros(len(tokens), dtype=numpy.float32),
        counts=numpy.minimum(_select(counts, kept), MAX_STORED_COUNT).astype(numpy.uint8),
    )


def _select(values: NDArray[Any], kept: NDArray[numpy.bool_] | None) -> NDArray[Any]:
    return values if kept is None else values[kept]


def _effective_counts(levels: list[TrieLevel], order: int, settings: SmoothingSettings) -> Counts:
    """The counts that this order is estimated from.

    Kneser-Ney's are, below the highest order, of the different tokens before an n-gram; n-grams
    that open a document have none before them and keep their own count (Heafield et al. 2013,
    section 3.3). A single token does not: as the next one it always has one before it.
    """
    level = levels[order - 1]
    counts = level.counts
    if settings.smoothing == "kneser-ney" and order < len(levels):
        extensions = _count_rows(levels[order].suffixes, len(level))
        counts = extensions if order == 1 else numpy.where(level.opens, level.counts, extensions)
    if order == 1:
        counts = numpy.where(numpy.isin(level.tokens, settings.excluded), 0, counts)
    return counts


def _count_rows(rows: NDArray[numpy.integer], size: int) -> NDArray[numpy.int64]:
    """How often each row occurs; numpy makes 64-bit copies of what it counts, so it gets pieces."""
    total = numpy.zeros(size, dtype=numpy.int64)
    for start in range(0, len(rows), BINCOUNT_ROWS):
        total += numpy.bincount(rows[start : start + BINCOUNT_ROWS], minlength=size)
    return total


def _find_discount(counts: Counts, discounts: list[float]) -> Reals:
    """What is taken away from each count; the last discount serves all higher counts."""
    by_count = numpy.array([0.0, *discounts, *(discounts[-1:] or [0.0]) * 3])
    return by_count[numpy.minimum(counts, 3)]


def _added_mass(group: _HistoryGroup, settings: SmoothingSettings, vocabulary: int) -> Reals:
    """What each history's whole has beside its counts, for the unseen."""
    if settings.smoothing == "witten-bell":
        return numpy.bincount(
            group.parents, weights=group.counts > 0, minlength=group.histories
        ).astype(float)
    return numpy.full(
        group.histories, settings.k * vocabulary if settings.smoothing == "add-k" else 0.0
    )


def _share_out(group: _HistoryGroup, extra: Reals) -> tuple[Reals, Reals]:
    """Each n-gram's own share, and each history's weight: 1 where nothing follows it.

    What was pruned is handed down with what was taken away.
    """
    parents, counts, taken = group.parents, group.counts, group.taken
    total = numpy.bincount(parents, weights=counts, minlength=group.histories)
    given = taken if group.kept is None else numpy.where(group.kept, taken, counts)
    handed = extra + numpy.bincount(parents, weights=given, minlength=group.histories)
    seen = total > 0
    weight = numpy.ones(group.histories)
    numpy.divide(handed, total + extra, out=weight, where=seen)
    share = numpy.zeros(len(counts))
    numpy.divide(counts - taken, (total + extra)[parents], out=share, where=seen[parents])
    return share, weight


def _log10(values: Reals) -> NDArray[numpy.float32]:
    with numpy.errstate(divide="ignore"):
        return numpy.log10(values).astype(numpy.float32)
