"""The ruler: one score for every model, charged for every byte of the same held-out documents.

Definitions (those of lm-evaluation-harness, with the end of a document scored too):

    bits_per_byte     total negative log2-likelihood / UTF-8 bytes
    word_perplexity   exp(total negative log-likelihood / white-space separated words)
    token_perplexity  exp(total negative log-likelihood / tokens)

A document starts from BOS, which is not scored; its end-of-text token is. Without BOS its first
token costs log V; without an end-of-text token its end is not scored, and the score says so. An
unknown word costs its `<unk>` and its spelling, each byte and an end at log(257): the score is the
length of a code, and a tokenizer cannot flatter it by not knowing words. Text that a tokenizer
drops or replaces is spelled in the same way (`alignment`). `likelihood` says how long documents are
read.
"""

import math
from collections.abc import Container, Iterable, Iterator, Sized
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rung.data.tokenizer import find_unk_token_id, lossy_features
from rung.errors import RunError
from rung.evaluation.documents import (
    DOCUMENTS_AT_ONCE,
    TokenizedDocument,
    batch_documents,
    spelling_cost,
    tokenize_documents,
)
from rung.evaluation.likelihood import choose_stride, compute_nll, needs_renormalization
from rung.evaluation.metrics import confidence_interval, log10_perplexity, perplexity
from rung.models.base import CausalModel
from rung.models.ngram.model import NgramForCausalLM
from rung.progress import OnProgress, Progress, ignore_progress


@dataclass(frozen=True, kw_only=True)
class Score:
    """The score of a model on held-out documents.

    `low` and `high` bound `bits_per_byte` at 95%; `interval` says how they were computed, or why
    they are None. The cost is infinite where the model gives a token probability 0. A perplexity
    beyond the range of a float is infinite too, but its logarithm in `as_dict` is not.
    """

    bits_per_byte: float
    low: float | None
    high: float | None
    interval: str
    word_perplexity: float
    token_perplexity: float
    nats: float
    documents: int
    bytes: int
    words: int
    tokens: int
    unknown_words: int
    unknown_nats: float  # the part of `nats` that spells unknown words
    window: int | None  # tokens; None where the model carries its state through the document
    stride: int | None
    # Text that the tokenizer dropped or replaced, without unknown words and white space.
    dropped_bytes: int = 0
    dropped_nats: float = 0.0  # the part of `nats` that spells it
    # What the tokenizer does not keep; unknown words, separators and dropped text are spelled out.
    lost: list[str]
    # Whether the model's scores do not sum to 1 (stupid back-off) and were divided by their sum.
    renormalized: bool = False
    # Whether documents start from BOS; without it their first tokens cost log V nats each.
    has_bos: bool = True
    end_scored: bool = True  # whether the end of each document is; not where there is no EOS
    dtype: str = "float32"  # of the weights that were read
    kenlm: dict[str, float] | None = None  # the figures of KenLM's `query`, for an n-gram
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for a run's record and for `--json`."""
        return asdict(self) | {
            "log10_word_perplexity": log10_perplexity(self.nats, self.words),
            "log10_token_perplexity": log10_perplexity(self.nats, self.tokens),
        }


def describe_reading(model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the fields of a score that say how documents begin and end, and the weights' type."""
    return {
        "has_bos": tokenizer.bos_token_id is not None,
        "end_scored": tokenizer.eos_token_id is not None,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def score_documents(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    on_progress: OnProgress = ignore_progress,
) -> Score:
    """Score whole documents.

    Memory holds one batch of documents at a time. Empty lines count in KenLM's figures only.
    Raises `RunError` where there is no text.
    """
    return sum_up(model, tokenizer, measure_documents(model, tokenizer, texts, on_progress))


def measure_documents(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    on_progress: OnProgress = ignore_progress,
) -> "MeasuredDocuments":
    """Compute the cost of each document. Raises `RunError` where there is no text."""
    total = len(texts) if isinstance(texts, Sized) else None
    lost = list(lossy_features(tokenizer))
    measured = MeasuredDocuments([], [], [], [], lost)
    unk_id = find_unk_token_id(tokenizer) if "unknown words" in lost else None
    for batch in batch_documents(
        tokenize_documents(_set_aside(texts, measured), tokenizer), DOCUMENTS_AT_ONCE
    ):
        for document, costs in zip(batch, compute_nll(model, [d.ids for d in batch]), strict=True):
            measured.costs.append(_cost_of(document, costs, unk_id))
            lost += [name for name in document.lost if name not in lost]
            measured.keys.append(document.key)
        done = len(measured.costs) + len(measured.empty)
        on_progress(Progress("scoring", done, total))
    if not measured.costs:
        raise RunError("there is no text to score: every line is empty")
    return measured


def _set_aside(texts: Iterable[str], measured: "MeasuredDocuments") -> Iterator[str]:
    """Yield the texts with words in them, and note the numbers of these and of the others."""
    for number, text in enumerate(texts):
        if text.strip():
            measured.numbers.append(number)
            yield text
        else:
            measured.empty.append(number)


class DocumentCost(NamedTuple):
    """The cost of one document in nats, and its counts; or a column of each, as arrays."""

    nats: Any
    spelling: Any  # nats that spell unknown words and dropped text
    unk: Any  # nats of the unknown words' tokens
    dropped: Any  # nats that spell dropped text
    bytes: Any
    words: Any
    tokens: Any
    unknown_words: Any
    dropped_bytes: Any


@dataclass(frozen=True)
class MeasuredDocuments:
    """The cost of each document of a text, beside its key and its number among the texts, from 0.

    `empty` are the numbers of the texts without words, `lost` is that of `Score`.
    """

    costs: list[DocumentCost]
    keys: list[int]  # equal for copies of a document
    numbers: list[int]
    empty: list[int]
    lost: list[str]

    def column(self, name: str) -> NDArray[Any]:
        """Return a field of all costs, as `nats` or `bytes`."""
        return numpy.array([getattr(cost, name) for cost in self.costs])

    def select(self, kept: Container[int]) -> "MeasuredDocuments":
        """Return the documents with these numbers."""
        places = [place for place, number in enumerate(self.numbers) if number in kept]
        return MeasuredDocuments(
            costs=[self.costs[place] for place in places],
            keys=[self.keys[place] for place in places],
            numbers=[self.numbers[place] for place in places],
            empty=[number for number in self.empty if number in kept],
            lost=self.lost,
        )

    def as_rows(self) -> list[dict[str, Any]]:
        """Return each document's number, sizes and cost for a table."""
        return [
            {
                "document": number,
                "bytes": cost.bytes,
                "words": cost.words,
                "tokens": cost.tokens,
                "nats": cost.nats,
                "bits_per_byte": cost.nats / math.log(2) / cost.bytes,
            }
            for number, cost in zip(self.numbers, self.costs, strict=True)
        ]


def _cost_of(document: TokenizedDocument, nats: torch.Tensor, unk_id: int | None) -> DocumentCost:
    is_unk = [id == unk_id for id in document.ids[1:]] if document.unknown else []
    return DocumentCost(
        nats=nats.double().sum().item() + document.spelling,
        spelling=document.spelling,
        unk=nats[torch.tensor(is_unk)].double().sum().item() if is_unk else 0.0,
        dropped=sum(map(spelling_cost, document.dropped)),
        bytes=document.bytes,
        words=document.words,
        tokens=len(nats),
        unknown_words=len(document.unknown),
        dropped_bytes=len("".join(document.dropped).encode()),
    )


def sum_up(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, measured: MeasuredDocuments
) -> Score:
    """Add up the documents' costs."""
    rows, lost, empty = measured.costs, measured.lost, len(measured.empty)
    columns = DocumentCost(*(numpy.array(column) for column in zip(*rows, strict=True)))
    sums = DocumentCost(*(column.sum().item() for column in columns))
    interval = confidence_interval(
        columns.nats / math.log(2), columns.bytes, measured.keys, least=0.0
    )
    window = model.context_length
    kenlm = None
    if isinstance(model, NgramForCausalLM) and model.is_normalized:
        kenlm = _kenlm_figures(sums, empty, _empty_line_nats(model, tokenizer))
    return Score(
        bits_per_byte=sums.nats / math.log(2) / sums.bytes,
        low=interval.low,
        high=interval.high,
        interval=interval.how,
        word_perplexity=perplexity(sums.nats, sums.words),
        token_perplexity=perplexity(sums.nats, sums.tokens),
        nats=sums.nats,
        documents=len(rows),
        bytes=sums.bytes,
        words=sums.words,
        tokens=sums.tokens,
        unknown_words=sums.unknown_words,
        unknown_nats=sums.spelling - sums.dropped,
        dropped_bytes=sums.dropped_bytes,
        dropped_nats=sums.dropped,
        window=window,
        stride=None if window is None else choose_stride(window),
        lost=lost,
        renormalized=needs_renormalization(model),
        kenlm=kenlm,
        **describe_reading(model, tokenizer),
    )


def _empty_line_nats(model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the nats that KenLM charges for an empty line, a sentence without words."""
    return compute_nll(model, [[tokenizer.bos_token_id, tokenizer.eos_token_id]])[0].sum().item()


def _kenlm_figures(sums: DocumentCost, empty: int, empty_line_nats: float) -> dict[str, float]:
    """Return the figures of KenLM's `query`.

    KenLM charges an unknown word for its <unk> and not for its spelling, and an empty line for its
    end.
    """
    nats = sums.nats - sums.spelling + empty * empty_line_nats
    tokens = sums.tokens + empty
    return {
        "perplexity_including_oov": perplexity(nats, tokens),
        "perplexity_excluding_oov": perplexity(nats - sums.unk, tokens - sums.unknown_words),
        "oov": sums.unknown_words,
        "tokens": tokens,
    }
