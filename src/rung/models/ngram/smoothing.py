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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from rung.errors import RecipeError
from rung.models.ngram.discounts import BINCOUNT_ROWS, choose_discounts
from rung.models.ngram.windows import TrieLevel

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
    """A smoothing by name, the `k` of add-k, and the tokens that never follow anything.

    `prune[i]` is the highest count at which an n-gram of order i+1 is dropped; the last entry
    serves all higher orders.
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
                "[0, 1]"
            )
        if self.prune[:1] > (0,):
            raise RecipeError(
                f"prune is {list(self.prune)}: its first entry must be 0, for single tokens are "
                "always kept"
            )

    def threshold(self, order: int) -> int:
        """The highest count at which n-grams of this order are dropped."""
        return self.prune[min(order, len(self.prune)) - 1] if self.prune else 0


@dataclass(frozen=True, kw_only=True)
class NgramTable:
    """One order of the model: its n-grams that were kept, with log10 of their probabilities."""

    tokens: NDArray[numpy.integer]
    parents: NDArray[numpy.integer]
    log10_probability: NDArray[numpy.float32]
    log10_backoff: NDArray[numpy.float32]  # of each row as a history
    counts: NDArray[numpy.uint8] | None = None  # at most `MAX_STORED_COUNT`; None: not known


def estimate_tables(
    levels: list[TrieLevel], settings: SmoothingSettings
) -> tuple[list[NgramTable], list[list[float]]]:
    """Smooth the counts: return the tables of all orders, and the discounts of each."""
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
        exact = numpy.empty(0 if is_highest else len(level))  # for the next order, in float64
        log10_probability = numpy.empty(len(level), dtype=numpy.float32)
        weight = numpy.empty(len(lower))
        for rows, histories in _group_by_history(level.parents, len(lower)):
            group = _HistoryGroup(
                parents=numpy.subtract(level.parents[rows], histories.start, dtype=numpy.intp),
                counts=counts[rows],
                discounts=_find_discounts(counts[rows], discounts[-1]),
                kept=None if kept is None else kept[rows],
                lower=lower[level.suffixes[rows]],
                histories=histories.stop - histories.start,
            )
            is_uniform = settings.smoothing == "add-k" and not is_highest
            probability, weight[histories] = _smooth(
                group, settings, vocabulary, is_uniform=is_uniform
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
    """The n-grams of one order that follow some histories, which are numbered from 0."""

    parents: NDArray[numpy.integer]
    counts: NDArray[numpy.integer]
    discounts: Reals  # of each count
    kept: NDArray[numpy.bool_] | None  # None: all of them
    lower: Reals  # the next lower order's probability
    histories: int


def _group_by_history(
    parents: NDArray[numpy.integer], histories: int
) -> Iterator[tuple[slice, slice]]:
    """Cut the rows of an order into groups: slices of rows, and of the histories they follow.

    All rows of a history are in one group. What is computed of a group fits into the processor's
    cache, and bounds the memory.
    """
    row = history = 0
    while history < histories:
        ahead = row + ROWS_AT_ONCE
        next_history = int(parents[ahead]) if ahead < len(parents) else histories
        if next_history == history:  # one history with more children than that
            next_history += 1
        # A number of another type would have all parents converted.
        next_row = int(numpy.searchsorted(parents, parents.dtype.type(next_history)))
        yield slice(row, next_row), slice(history, next_history)
        row, history = next_row, next_history


def _smooth(
    group: _HistoryGroup, settings: SmoothingSettings, vocabulary: int, *, is_uniform: bool
) -> tuple[Reals, Reals]:
    """Return the probability of each n-gram and the weight of each history.

    `is_uniform` takes the lower order's probabilities, as if nothing had been seen.
    """
    if is_uniform:
        return group.lower, numpy.ones(group.histories)
    extra = _added_mass(group, settings, vocabulary)
    share, weight = _normalize(group, extra)
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

    Below the highest order Kneser-Ney counts the different tokens before an n-gram. N-grams that
    open a document have none before them and keep their own count (Heafield et al. 2013, section
    3.3). A single token that is predicted always has one before it.
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
    """Count how often each row occurs, part by part, for numpy makes 64-bit copies of them."""
    total = numpy.zeros(size, dtype=numpy.int64)
    for start in range(0, len(rows), BINCOUNT_ROWS):
        total += numpy.bincount(rows[start : start + BINCOUNT_ROWS], minlength=size)
    return total


def _find_discounts(counts: Counts, discounts: list[float]) -> Reals:
    """The discount of each count; the last one serves all higher counts."""
    by_count = numpy.array([0.0, *discounts, *(discounts[-1:] or [0.0]) * 3])
    return by_count[numpy.minimum(counts, 3)]


def _added_mass(group: _HistoryGroup, settings: SmoothingSettings, vocabulary: int) -> Reals:
    """The mass that is added to the counts of each history, for unseen n-grams."""
    if settings.smoothing == "witten-bell":
        return numpy.bincount(
            group.parents, weights=group.counts > 0, minlength=group.histories
        ).astype(float)
    return numpy.full(
        group.histories, settings.k * vocabulary if settings.smoothing == "add-k" else 0.0
    )


def _normalize(group: _HistoryGroup, extra: Reals) -> tuple[Reals, Reals]:
    """Return each n-gram's own share, and each history's weight: 1 where nothing follows it.

    The counts of pruned n-grams go to the lower order with the discounts.
    """
    parents, counts, discounts = group.parents, group.counts, group.discounts
    total = numpy.bincount(parents, weights=counts, minlength=group.histories)
    given = discounts if group.kept is None else numpy.where(group.kept, discounts, counts)
    lowered = extra + numpy.bincount(parents, weights=given, minlength=group.histories)
    seen = total > 0
    divisor = numpy.where(seen, total + extra, 1.0)
    weight = numpy.where(seen, lowered / divisor, 1.0)
    # Where nothing was seen, there is nothing to share: counts and discounts are 0.
    return (counts - discounts) / divisor[parents], weight


def _log10(values: Reals) -> NDArray[numpy.float32]:
    with numpy.errstate(divide="ignore"):
        return numpy.log10(values).astype(numpy.float32)


def list_excluded_tokens(config: PreTrainedConfig, bos: int) -> tuple[int, ...]:
    """List the tokens that never follow anything: BOS and PAD, unless one also ends documents."""
    tokens: Iterable[int | None] = (bos, config.pad_token_id)
    return tuple(sorted({t for t in tokens if t is not None and t != config.eos_token_id}))
