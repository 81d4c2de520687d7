"""What a switch on the ruler reports: the same documents at another cost, beside the plain score
and its difference.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy

from rung.evaluation.documents import TokenizedDocument
from rung.evaluation.metrics import confidence_interval, log10_perplexity, perplexity

Report = Callable[
    [str, int, int | None, str], None
]  # what is done, how far, of how much, and a note
Row = tuple[
    TokenizedDocument, float, float
]  # a document, its tokens' plain cost in nats, and their cost under the switch


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A score under a switch; `difference` is this less the plain score, in bits per byte.

    Intervals are the ruler's. That of the difference draws documents with both of their costs, so
    that what is hard for both does not blur it.
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
    seconds: float  # the fitting included
    fitted: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: what was fitted among the rest."""
        facts = asdict(self)
        return facts | facts.pop("fitted")


def score_variant(
    rows: Iterable[Row], fitted: dict[str, Any], texts: Iterable[str], began: float
) -> Variant:
    """Add the rows up; `fitted` was fitted on `texts`, and all of it was begun at `began`."""
    facts = [
        (plain + d.spelling, nats + d.spelling, d.bytes, d.words, len(d.ids) - 1, d.key)
        for d, plain, nats in rows
    ]
    plain, nats, sizes, words, tokens, keys = (
        numpy.array(column) for column in zip(*facts, strict=True)
    )
    interval = confidence_interval(nats / math.log(2), sizes, keys, least=0.0)
    with numpy.errstate(invalid="ignore"):  # infinity less infinity
        gains = (nats - plain) / math.log(2)
    difference = confidence_interval(gains, sizes, keys)
    total, size = nats.sum().item(), int(sizes.sum())
    return Variant(
        bits_per_byte=total / math.log(2) / size,
        low=interval.low,
        high=interval.high,
        interval=interval.how,
        difference=gains.sum().item() / size if numpy.isfinite(gains).all() else None,
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


class Pace:
    """Tells how far a stage is, in documents, and how fast, in tokens."""

    def __init__(self, report: Report, stage: str, total: int | None) -> None:
        self.report, self.stage, self.total = report, stage, total
        self.done = self.tokens = 0
        self.began = time.perf_counter()

    def step(self, tokens: int, documents: int = 0) -> None:
        """So many more tokens are done, and so many documents with them."""
        self.tokens += tokens
        self.done += documents
        rate = self.tokens / max(time.perf_counter() - self.began, 1e-9)
        self.report(self.stage, self.done, self.total, f"{rate:,.0f} tokens/s")

    def follow(
        self, documents: Iterable[tuple[TokenizedDocument, Any]]
    ) -> Iterator[tuple[TokenizedDocument, Any]]:
        """Hand on what comes, counted."""
        for document, found in documents:
            yield document, found
            self.step(len(document.ids) - 1, 1)
