"""Scores of evaluation variants (a cache, a mixture, dynamic evaluation) of the same documents."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy

from rung.evaluation.compare import paired_difference
from rung.evaluation.documents import TokenizedDocument
from rung.evaluation.metrics import confidence_interval, log10_perplexity, perplexity
from rung.progress import ProgressMeter

# A document, and its tokens' nats under the plain model and under the variant.
VariantRow = tuple[TokenizedDocument, float, float]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Scores of an evaluation variant, with its paired difference from the plain score.

    `difference` is this score less the plain one, in bits per byte.
    """

    bits_per_byte: float
    low: float | None
    high: float | None
    interval: str
    difference: float | None  # None where a cost is infinite
    difference_low: float | None
    difference_high: float | None
    word_perplexity: float
    token_perplexity: float
    log10_word_perplexity: float
    log10_token_perplexity: float
    nats: float
    validation_bytes: int  # of the text that `fitted` was fitted on
    seconds: float  # of fitting and scoring
    fitted: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for `--json`, those of `fitted` among them."""
        facts = asdict(self)
        return facts | facts.pop("fitted")


def score_variant(
    rows: Iterable[VariantRow], fitted: dict[str, Any], texts: Iterable[str], began: float
) -> Variant:
    """Score a variant by its documents' costs.

    `fitted` are the parameters that were fitted on `texts`; `began` is the time of
    `time.perf_counter` at the start of the fitting.
    """
    facts = [
        (plain + d.spelling, nats + d.spelling, d.bytes, d.words, len(d.ids) - 1, d.key)
        for d, plain, nats in rows
    ]
    plain, nats, sizes, words, tokens, keys = (
        numpy.array(column) for column in zip(*facts, strict=True)
    )
    interval = confidence_interval(nats / math.log(2), sizes, keys, least=0.0)
    difference = paired_difference(nats, plain, sizes, keys)
    total, size = nats.sum().item(), int(sizes.sum())
    return Variant(
        bits_per_byte=total / math.log(2) / size,
        low=interval.low,
        high=interval.high,
        interval=interval.how,
        difference=difference.mean,
        difference_low=difference.low,
        difference_high=difference.high,
        word_perplexity=perplexity(total, int(words.sum())),
        token_perplexity=perplexity(total, int(tokens.sum())),
        log10_word_perplexity=log10_perplexity(total, int(words.sum())),
        log10_token_perplexity=log10_perplexity(total, int(tokens.sum())),
        nats=total,
        validation_bytes=sum(len(text.encode()) for text in texts),
        seconds=time.perf_counter() - began,
        fitted=fitted,
    )


def meter_documents(
    documents: Iterable[tuple[TokenizedDocument, Any]], meter: ProgressMeter
) -> Iterator[tuple[TokenizedDocument, Any]]:
    """Pass the documents on, and count each as done once the next one is asked for."""
    for document, found in documents:
        yield document, found
        meter.step(len(document.ids) - 1, items=1)
