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

import ctypes
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from rung.device import count_cores
from rung.errors import RecipeError
from rung.models.ngram.discounts import choose_discounts, compile_smoothing, count_occurrences
from rung.models.ngram.tables import MAX_STORED_COUNT, NgramTable
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


def estimate_tables(
    levels: list[TrieLevel], settings: SmoothingSettings
) -> tuple[list[NgramTable], list[list[float]]]:
    """Smooth the counts: return the tables of all orders, and the discounts of each.

    Levels are taken from the list, so that the memory of those that are done is free.
    """
    vocabulary = len(levels[0]) - len(settings.excluded)
    lower = numpy.full(1, 1.0 / vocabulary)
    tables: list[NgramTable] = []
    discounts: list[list[float]] = []
    kept_before: NDArray[numpy.bool_] | None = None
    while levels:
        level, is_lowest, is_highest = levels.pop(0), not tables, not levels
        counts = _effective_counts(level, levels, settings, is_lowest=is_lowest)
        found = choose_discounts(counts, len(tables) + 1, settings.smoothing)
        threshold = 0 if is_lowest else settings.threshold(len(tables) + 1)
        order = _Order(
            level=level,
            counts=counts,
            discounts=numpy.array([0.0, *found, *(found[-1:] or [0.0]) * 3])[:4],
            kept=level.counts > threshold if threshold else None,
            lower=lower,
            unigrams=vocabulary,
            settings=settings,
            is_lowest=is_lowest,
            is_uniform=settings.smoothing == "add-k" and not is_highest,
            log10_probability=numpy.empty(len(level), dtype=numpy.float32),
            probability=numpy.empty(0 if is_highest else len(level)),
            weight=numpy.empty(len(lower)),
        )
        order.smooth()
        if not is_lowest:
            backoff = _log10(_select(order.weight, kept_before))
            tables[-1] = replace(tables[-1], log10_backoff=backoff)
        tables.append(_make_table(order, kept_before))
        discounts.append(found)
        lower, kept_before = order.probability, order.kept
    return tables, discounts


@dataclass(frozen=True, kw_only=True)
class _Order:
    """The n-grams of one order, and the arrays that `smooth` fills."""

    level: TrieLevel
    counts: Counts  # that it is estimated from
    discounts: Reals  # of a count of 0, 1, 2, and 3 or more
    kept: NDArray[numpy.bool_] | None  # None: all of them
    lower: Reals  # the next lower order's probabilities
    unigrams: int
    settings: SmoothingSettings
    is_lowest: bool
    is_uniform: bool  # takes the lower order's probabilities, as if nothing had been seen
    log10_probability: NDArray[numpy.float32]
    probability: Reals  # for the next order; empty where there is none
    weight: Reals  # of each history

    def smooth(self) -> None:
        """Fill the arrays, some histories at a time, on all cores."""
        groups = list(_group_by_history(self.level.parents, len(self.weight)))
        with ThreadPoolExecutor(min(count_cores(), len(groups))) as threads:
            list(threads.map(self._smooth_group, *zip(*groups, strict=True)))

    def _smooth_group(self, rows: slice, histories: slice) -> None:
        probability = self.lower[self.level.suffixes[rows]]
        weight = self.weight[histories]
        is_native = self.counts.dtype == self.level.parents.dtype == numpy.int32
        if self.is_uniform:
            weight[:] = 1
        elif is_native and (library := compile_smoothing()):
            self._smooth_in_c(library, rows, histories, probability)
        else:
            probability, weight[:] = self._smooth_in_numpy(rows, histories, probability)
        if self.is_lowest:
            probability[list(self.settings.excluded)] = 0
        self.log10_probability[rows] = _log10(probability)
        if len(self.probability):
            self.probability[rows] = probability

    def _smooth_in_c(
        self, library: ctypes.CDLL, rows: slice, histories: slice, lower: Reals
    ) -> None:
        """Do as `_smooth_in_numpy` does, and write the probabilities over the lower order's."""
        kind, kept = self.settings.smoothing, None if self.kept is None else self.kept[rows]
        parents, counts, weight = (
            self.level.parents[rows],
            self.counts[rows],
            self.weight[histories],
        )
        library.smooth(
            *(len(lower), len(weight), histories.start, parents.ctypes.data, counts.ctypes.data),
            *(None if kept is None else kept.ctypes.data, self.discounts.ctypes.data),
            self.settings.k * self.unigrams if kind == "add-k" else 0,
            kind == "witten-bell",
            STUPID_BACKOFF_WEIGHT if kind == "stupid-backoff" else 0,
            *(lower.ctypes.data, weight.ctypes.data),
        )

    def _smooth_in_numpy(self, rows: slice, histories: slice, lower: Reals) -> tuple[Reals, Reals]:
        """Return the probability of each n-gram and the weight of each history.

        A weight is 1 where nothing follows the history. The counts of pruned n-grams go to the
        lower order with the discounts.
        """
        kind, size = self.settings.smoothing, histories.stop - histories.start
        counts, parents = self.counts[rows], self.level.parents[rows] - histories.start
        discounts = given = self.discounts[numpy.minimum(counts, 3)]
        if self.kept is not None:
            given = numpy.where(self.kept[rows], discounts, counts)
        extra = numpy.full(size, self.settings.k * self.unigrams if kind == "add-k" else 0.0)
        if kind == "witten-bell":
            extra += numpy.bincount(parents, weights=counts > 0, minlength=size)
        total = numpy.bincount(parents, weights=counts, minlength=size)
        lowered = extra + numpy.bincount(parents, weights=given, minlength=size)
        divisor = numpy.where(total > 0, total + extra, 1.0)
        weight = numpy.where(total > 0, lowered / divisor, 1.0)
        # Where nothing was seen, there is nothing to share: counts and discounts are 0.
        share = (counts - discounts) / divisor[parents]
        if kind == "stupid-backoff":
            scores = numpy.where(counts > 0, share, STUPID_BACKOFF_WEIGHT * lower)
            return scores, numpy.full(size, STUPID_BACKOFF_WEIGHT)
        return share + weight[parents] * lower, weight


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


def _make_table(order: _Order, kept_before: NDArray[numpy.bool_] | None) -> NgramTable:
    """Make the table of the n-grams that are kept; `kept_before` are those of the order below."""
    parents = _select(order.level.parents, order.kept)
    tokens = _select(order.level.tokens, order.kept)
    counts = numpy.empty(len(tokens), dtype=numpy.uint8)
    known = _select(order.counts, order.kept)
    return NgramTable(
        tokens=tokens,
        parents=parents if kept_before is None else (numpy.cumsum(kept_before) - 1)[parents],
        log10_probability=_select(order.log10_probability, order.kept),
        log10_backoff=numpy.zeros(len(tokens), dtype=numpy.float32),
        counts=numpy.minimum(known, MAX_STORED_COUNT, out=counts, casting="unsafe"),
    )


def _select(values: NDArray[Any], kept: NDArray[numpy.bool_] | None) -> NDArray[Any]:
    return values if kept is None else values[kept]


def _effective_counts(
    level: TrieLevel, above: list[TrieLevel], settings: SmoothingSettings, *, is_lowest: bool
) -> Counts:
    """The counts that this order is estimated from.

    Below the highest order Kneser-Ney counts the different tokens before an n-gram. N-grams that
    open a document have none before them and keep their own count (Heafield et al. 2013, section
    3.3). A single token that is predicted always has one before it.
    """
    counts = level.counts
    if settings.smoothing == "kneser-ney" and above:
        counts = count_occurrences(above[0].suffixes, len(level)).astype(counts.dtype, copy=False)
        if not is_lowest:
            numpy.copyto(counts, level.counts, where=level.opens)
    if is_lowest:
        counts = numpy.where(numpy.isin(level.tokens, settings.excluded), 0, counts)
    return counts


def _log10(values: Reals) -> NDArray[numpy.float32]:
    with numpy.errstate(divide="ignore"):
        return numpy.log10(values).astype(numpy.float32)


def list_excluded_tokens(config: PreTrainedConfig, bos: int) -> tuple[int, ...]:
    """List the tokens that never follow anything: BOS and PAD, unless one also ends documents."""
    tokens: Iterable[int | None] = (bos, config.pad_token_id)
    return tuple(sorted({t for t in tokens if t is not None and t != config.eos_token_id}))
