"""Novelty: how much of a text is not copied from the training text, word by word.

An n-gram of words is new where the training text does not hold it. The share of new n-grams, for
each n, and the longest copied span are compared with those of held-out text that people wrote
(McCoy et al. 2023, RAVEN, sections 3 and 4). All of them come from one figure: the longest span
ending at each word that the training text holds.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from rung.evaluation.metrics import confidence_interval
from rung.evaluation.overlap import SpanIndex, split_units

NGRAM_LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 30)
COMPARED_LENGTHS = NGRAM_LENGTHS[:10]
REPEATED_LENGTH = 5  # of the n-grams that are looked for earlier in the same text


@dataclass(frozen=True, kw_only=True)
class Novelty:
    """How much of some texts is new.

    `new` maps n to the share of new n-grams, None where no text has so many words. `new_share` is
    that of all n-grams of 1 to 10 words together, and `low` and `high` are its 95% interval over
    the texts. `repeated` is the share of 5-grams that stand earlier in the same text.
    """

    texts: int
    words: int
    new: dict[int, float | None]
    new_share: float | None
    low: float | None
    high: float | None
    longest: int
    longest_text: str
    repeated: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for a run's record and for `--json`."""
        return asdict(self) | {"new": {str(n): share for n, share in self.new.items()}}

    def distance(self, other: "Novelty") -> float:
        """Return the mean difference of the shares of new n-grams, of 1 to 10 words.

        It is infinite where nothing compares.
        """
        pairs = [(self.new[n], other.new[n]) for n in COMPARED_LENGTHS]
        gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
        return sum(gaps) / len(gaps) if gaps else math.inf

    def compare(self, other: "Novelty") -> str:
        """Return `copies more` or `newer` than `other`, or `alike` within the 95% intervals.

        Without words or without an interval, as of one text, nothing is said of it.
        """
        if self.new_share is None or other.new_share is None:
            return "no words"
        widths = [_half_width(self), _half_width(other)]
        if None in widths:
            return "too few texts"
        noise = math.hypot(*filter(None, widths))
        difference = self.new_share - other.new_share
        if abs(difference) <= noise:
            return "alike"
        return "newer" if difference > 0 else "copies more"


def measure_novelty(texts: Sequence[str], index: SpanIndex) -> Novelty:
    """Measure how much of the texts is new beside the documents of `index`."""
    matches = index.match(texts)
    counts = {n: [_count_new(longest, n) for longest in matches] for n in NGRAM_LENGTHS}
    compared = numpy.array([counts[n] for n in COMPARED_LENGTHS]).sum(axis=0)  # texts, 2
    written = compared[compared[:, 1] > 0] if len(compared) else compared
    share = _divide(*written.sum(axis=0)) if len(written) else None
    low = high = None
    if share is not None:
        interval = confidence_interval(written[:, 0], written[:, 1], least=0.0)
        low, high = interval.low, interval.high and min(interval.high, 1.0)
    longest, text = _find_longest(texts, index, matches)
    return Novelty(
        texts=len(texts),
        words=sum(map(len, matches)),
        new={
            n: _divide(sum(new for new, _ in row), sum(size for _, size in row))
            for n, row in counts.items()
        },
        new_share=share,
        low=low,
        high=high,
        longest=longest,
        longest_text=text,
        repeated=_measure_repetition([split_units(text, index.unit) for text in texts]),
    )


def find_crossing(at: Sequence[float], figures: Sequence[float], wanted: float) -> float | None:
    """Return where a figure that was measured `at` some places is first the one that is wanted.

    Between two places it is taken to lie on a line; None where it is on one side at all places.
    """
    points = sorted(zip(at, figures, strict=True))
    for (here, one), (there, other) in itertools.pairwise(points):
        if min(one, other) <= wanted <= max(one, other):
            part = (wanted - one) / (other - one) if other != one else 0.0
            return float(here + part * (there - here))
    return None


def _count_new(longest: NDArray[numpy.int64], n: int) -> tuple[int, int]:
    """Count the new n-grams of a text, and all of them."""
    ends = longest[n - 1 :]
    return int((ends < n).sum()), len(ends)


def _find_longest(
    texts: Sequence[str], index: SpanIndex, matches: Sequence[NDArray[numpy.int64]]
) -> tuple[int, str]:
    """Return the length of the longest span that the index holds, and its text."""
    best = [int(longest.max(initial=0)) for longest in matches]
    length = max(best, default=0)
    if not length:
        return 0, ""
    place = best.index(length)
    end = int(matches[place].argmax()) + 1
    joint = " " if index.unit == "words" else ""
    return length, joint.join(split_units(texts[place], index.unit)[end - length : end])


def _measure_repetition(rows: Sequence[Sequence[str]]) -> float | None:
    """Return the share of n-grams that occur earlier in the same text."""
    total = kinds = 0
    for words in rows:
        grams = [
            tuple(words[place : place + REPEATED_LENGTH])
            for place in range(len(words) - REPEATED_LENGTH + 1)
        ]
        total += len(grams)
        kinds += len(set(grams))
    return _divide(total - kinds, total)


def _divide(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole else None


def _half_width(novelty: Novelty) -> float | None:
    if novelty.low is None or novelty.high is None:
        return None
    return (novelty.high - novelty.low) / 2
