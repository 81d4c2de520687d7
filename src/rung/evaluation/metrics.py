"""Perplexities and confidence intervals of a score, and the format they are written in."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy
from numpy.typing import ArrayLike, NDArray

LZMA_AFTER_TRAIN = "lzma after train"  # the mark of lzma after it has read the training text
SOURCE_MARK = "the source itself"  # the mark of a text whose true probability is known
NO_FIGURE = "–"
MAX_BYTES_PER_WORD = 50  # above it a text has next to no spaces, and no word perplexity
RENORMALIZED = (
    "its scores were divided by their sum over the vocabulary, so this is the cost of another model"
)
MIN_SEEN = 0.01  # the least share of a text seen in training that is shown
BITS_PER_BYTE, BITS_WITHOUT_ENDS = "bits per byte", "bits per byte, ends not scored"
SCIENTIFIC_FROM = 7  # the power of ten from which perplexities are written as powers of ten


def log10_perplexity(nats: float, count: int) -> float:
    """Return the decimal logarithm of exp(nats / count), infinite where the nats are."""
    return nats / max(count, 1) / math.log(10)


def perplexity(nats: float, count: int) -> float:
    """Return exp(nats / count), infinite where that is beyond the range of a float."""
    try:
        return math.exp(nats / max(count, 1))
    except OverflowError:
        return math.inf


def format_perplexity(log10: float | None) -> str:
    """Format a perplexity, given as its logarithm, in two to four digits: 20.3, 9,123, 1.9×10^7.

    None is written as a dash.
    """
    if log10 is None:
        return NO_FIGURE
    if not math.isfinite(log10):
        return "infinite"
    if log10 < SCIENTIFIC_FROM:
        value = 10**log10
        return f"{value:,.{1 if value < 1000 else 0}f}"
    digits, power = f"{10 ** (log10 % 1):.1f}", math.floor(log10)
    return f"1.0×10^{power + 1}" if digits == "10.0" else f"{digits}×10^{power}"


def format_token_perplexity(score: Mapping[str, Any]) -> str:
    """Format the token perplexity of a record's score."""
    return format_perplexity(_find_log10(score, "token"))


def format_word_perplexity(score: Mapping[str, Any]) -> str:
    """Format the word perplexity of a record's score; a dash where a text has next to no spaces."""
    if score.get("bytes", 0) > MAX_BYTES_PER_WORD * score.get("words", math.inf):
        return NO_FIGURE
    return format_perplexity(_find_log10(score, "word"))


def name_bits(score: Mapping[str, Any]) -> str:
    """Return the name of a score's bits per byte, which tells scores apart that do not compare."""
    return BITS_PER_BYTE if score.get("end_scored", True) else BITS_WITHOUT_ENDS


def explain_reading(score: Mapping[str, Any]) -> dict[str, str]:
    """Say what is out of the ordinary in how documents were read: their ends and the weights."""
    notes = {}
    if not score.get("has_bos", True):
        notes["beginning"] = "no begin-of-text token: a document's first token costs log2 V bits"
    if not score.get("end_scored", True):
        notes["end"] = "no end-of-text token: the end of a document is not scored"
    if (dtype := score.get("dtype", "float32")) != "float32":
        notes["weights"] = f"read in {dtype}"
    return notes


def format_value(value: float) -> str:
    """Format a figure with four decimals, or as a power of ten."""
    return format_perplexity(math.log10(value)) if value >= 10**SCIENTIFIC_FROM else f"{value:.4f}"


def format_accuracy(found: Mapping[str, Any]) -> str:
    """Format an accuracy with its 95% interval, in percent: `83.1% (80.7-85.3)`."""
    accuracy, low, high = (100 * found[key] for key in ("accuracy", "low", "high"))
    return f"{accuracy:.1f}% ({low:.1f}-{high:.1f})"


def describe_pairs(found: Mapping[str, Any]) -> str:
    """Describe what an accuracy on minimal pairs is, for a line below a table."""
    pairs = f"{found['pairs']:,} pair{'s' * (found['pairs'] != 1)}"
    return (
        f"Minimal pairs: the share of {pairs} of {found['name']} whose good "
        "sentence is likelier; a tie counts half"
    )


def format_interval(score: Mapping[str, Any]) -> str:
    """Format the interval of a record's score and its method, or the reason why there is none.

    Records of older runs do not name the method.
    """
    how = score.get("interval", "")
    if score["low"] is None:
        return how.replace("none:", "no interval:")
    return f"95% interval {score['low']:.3f} to {score['high']:.3f}" + (f" ({how})" if how else "")


def _find_log10(score: Mapping[str, Any], unit: str) -> float | None:
    """Return the logarithm of a score's perplexity, None where there is no score.

    It is computed from the nats, for the perplexity may be beyond the range of a float or of JSON.
    """
    name = f"{unit}_perplexity"
    if name not in score:
        return None
    if score.get("nats") is not None and score.get(f"{unit}s") is not None:
        return log10_perplexity(score["nats"], score[f"{unit}s"])
    value = score[name]
    return math.inf if value is None or math.isinf(value) else math.log10(value)


@dataclass(frozen=True)
class ConfidenceInterval:
    """The ends of a 95% interval and its method; or None, and the reason why there is none."""

    low: float | None
    high: float | None
    how: str


def confidence_interval(
    costs: ArrayLike, sizes: ArrayLike, keys: ArrayLike | None = None, least: float = -math.inf
) -> ConfidenceInterval:
    """Return a 95% interval of sum(costs) / sum(sizes) over documents, by Student's t.

    The variance is that of a ratio. A document's residual is its cost less the cost of its size at
    the common rate; the square is corrected for the document's leverage (Bell & McCaffrey 2002).
    The degrees of freedom are those of the effective number of documents, (Σ size)² / Σ size² (Kish
    1965). From two documents to a hundred it covers 94 to 98%, where a bootstrap covers from 50%
    on. Documents with the same key are copies, and count as one. No end is below `least`.
    """
    if not numpy.isfinite(costs).all():
        return ConfidenceInterval(None, None, "none: a cost is infinite")
    values, weights = numpy.asarray(costs, float), numpy.asarray(sizes, float)
    count = len(values)
    if keys is not None:
        values, weights = merge_copies(keys, values, weights)
    if len(values) < 2:
        return ConfidenceInterval(
            None,
            None,
            "none: one document" if count < 2 else f"none: all {count:,} documents are equal",
        )
    total = weights.sum()
    rate, shares = values.sum() / total, weights / total
    residuals, squares = (values - rate * weights) / total, (shares**2).sum()
    error = math.sqrt((residuals**2 / (1 - 2 * shares + squares)).sum())
    half = student_t_quantile(max(1.0, 1 / squares - 1)) * error
    copies = f" different documents of {count:,}" if len(values) < count else " documents"
    return ConfidenceInterval(
        max(least, float(rate - half)),
        float(rate + half),
        f"Student's t over {len(values):,}{copies}",
    )


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share of `count` draws, by the score of Wilson (1927)."""
    square = NormalDist().inv_cdf(0.975) ** 2
    middle = (share + square / (2 * count)) / (1 + square / count)
    variance = share * (1 - share) * square / count + (square / (2 * count)) ** 2
    half = math.sqrt(variance) / (1 + square / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def merge_copies(keys: ArrayLike, *columns: NDArray[Any]) -> list[NDArray[Any]]:
    """Return each column with the values of documents with the same key added up."""
    _, groups = numpy.unique(numpy.asarray(keys), return_inverse=True)
    return [numpy.bincount(groups, column) for column in columns]


@functools.lru_cache
def student_t_quantile(freedom: float) -> float:
    """Return the t for which 95% of Student's distribution lies between -t and t.

    With t = √freedom tan θ, the density of θ is proportional to cos θ to the power of freedom - 1.
    """
    freedom = min(freedom, 1e4)  # beyond it, the normal distribution to all digits
    angles = numpy.linspace(0, numpy.pi / 2, 4001)
    heights = numpy.cos(angles) ** (freedom - 1)
    areas = numpy.append(0, numpy.cumsum(heights[1:] + heights[:-1]))
    return float(freedom**0.5 * numpy.tan(numpy.interp(0.95 * areas[-1], areas, angles)))
