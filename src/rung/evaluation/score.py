"""The ruler: one number for every rung, charged for every byte of the same held-out documents.

Definitions (those of lm-evaluation-harness, with the end of a document scored too):

    bits_per_byte     total negative log2-likelihood / UTF-8 bytes
    word_perplexity   exp(total negative log-likelihood / white-space separated words)
    token_perplexity  exp(total negative log-likelihood / tokens)

A document starts from BOS, which is not scored; its end-of-text token is. A model that looks at a
limited number of tokens reads long documents through a sliding window, each token scored once, with
at least `window - stride` tokens before it. An unknown word costs its `<unk>` and the spelling of
it, each byte and an end at log(257): the score is the length of a code, and a tokenizer cannot
flatter it by not knowing words. Text that a tokenizer drops or replaces is spelled in the same way
(`reading`).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from rung.data.tokenizer import find_unk_token_id, lossy_features
from rung.errors import RunError
from rung.evaluation.lossless import Aligner, join_tokens
from rung.evaluation.metrics import confidence_interval, log10_perplexity, perplexity
from rung.models.base import CausalModel, CountingModel, check_finite
from rung.models.ngram.model import NgramForCausalLM

LOGITS_AT_ONCE = 2**24  # positions times vocabulary: 64 MiB in float32
DOCUMENTS_AT_ONCE = 64
STATEFUL_TOKENS = 1024  # tokens a model with a carried state reads at a time

# A model, pieces of documents and a state to what is said of each prediction (B, T, ...), and the
# state after.
ForwardFunction = Callable[[CausalModel, list[list[int]], Any], tuple[torch.Tensor, Any]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model's held-out text costs; `low` and `high` bound bits_per_byte at 95%, `interval`
    says how they were found, or why they are None.

    A model that gives a token probability 0 costs infinitely much. A perplexity beyond what a float
    holds is infinite; its logarithm, in `as_dict`, is not.
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
    dropped_bytes: int = (
        0  # of text that the tokenizer dropped or replaced, unknown words and white space apart
    )
    dropped_nats: float = 0.0  # the part of `nats` that spells it
    lost: list[
        str
    ]  # what the tokenizer does not keep; unknown words, separators, dropped text are spelled out
    renormalized: bool = (
        False  # the model's own scores are no distribution (stupid back-off): divided by their sum
    )
    kenlm: dict[str, float] | None = None  # of an n-gram: the figures that KenLM's `query` prints
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For a run's record and for `--json`."""
        return asdict(self) | {
            "log10_word_perplexity": log10_perplexity(self.nats, self.words),
            "log10_token_perplexity": log10_perplexity(self.nats, self.tokens),
        }


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """A piece of text and its surprisal in bits; of an n-gram, the order it was found at, how often
    it was seen there (255: or more), and what was taken from that count for the unseen.
    """

    text: str
    bits: float
    tokens: int = 1  # that it joins: those that hold bytes of one character
    end: bool = False
    order: int | None = None
    count: int | None = None
    discount: float | None = None
    renormalized: bool = False  # as a `Score` is


@dataclass(frozen=True)
class TokenizedDocument:
    """Token ids from BOS to EOS, and the text's own counts."""

    ids: list[int]
    bytes: int
    words: int
    unknown: list[str]
    dropped: list[str]
    lost: tuple[str, ...]

    @property
    def spelling(self) -> float:
        """What its unknown words cost beyond their `<unk>`, and its dropped text, in nats."""
        return sum(map(spelling_cost, [*self.unknown, *self.dropped]))

    @property
    def key(self) -> int:
        """A number that copies of the document share."""
        return hash((tuple(self.ids), tuple(self.unknown), tuple(self.dropped)))


def score_documents(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    on_document: Callable[[int], None] | None = None,
) -> Score:
    """Score whole documents; `on_document` is called with the number done so far.

    Memory holds one batch of documents at a time. Empty lines are part of KenLM's figures alone.
    Raises `RunError` where there is no text.
    """
    rows: list[tuple[float, ...]] = []
    keys: list[int] = []
    empty: list[str] = []
    unknown_token, lost = find_unk_id(tokenizer), list(lossy_features(tokenizer))
    for batch in batch_documents(
        tokenize_documents(_set_aside(texts, empty), tokenizer), DOCUMENTS_AT_ONCE
    ):
        for document, costs in zip(batch, compute_nll(model, [d.ids for d in batch]), strict=True):
            rows.append(_add_up(document, costs, unknown_token))
            lost += [name for name in document.lost if name not in lost]
            keys.append(document.key)
        if on_document:
            on_document(len(rows) + len(empty))
    if not rows:
        raise RunError("there is no text to score: every line is empty")
    return _sum_up(model, tokenizer, rows, keys, lost, len(empty))


def _set_aside(texts: Iterable[str], empty: list[str]) -> Iterator[str]:
    """Those with words in them; the others go to `empty`."""
    for text in texts:
        if text.strip():
            yield text
        else:
            empty.append(text)


def _sum_up(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[tuple[float, ...]],
    keys: list[int],
    lost: list[str],
    empty: int,
) -> Score:
    """The score of documents that were added up each, and of so many empty lines."""
    columns = [numpy.array(column) for column in zip(*rows, strict=True)]
    interval = confidence_interval(columns[0] / math.log(2), columns[4], keys, least=0.0)
    nats, spelling, of_unknown, of_dropped = (column.sum().item() for column in columns[:4])
    sizes, words, tokens, unknown, dropped_bytes = (int(column.sum()) for column in columns[4:])
    window = model.context_length
    return Score(
        bits_per_byte=nats / math.log(2) / sizes,
        low=interval.low,
        high=interval.high,
        interval=interval.how,
        word_perplexity=perplexity(nats, words),
        token_perplexity=perplexity(nats, tokens),
        nats=nats,
        documents=len(rows),
        bytes=sizes,
        words=words,
        tokens=tokens,
        unknown_words=unknown,
        unknown_nats=spelling - of_dropped,
        dropped_bytes=dropped_bytes,
        dropped_nats=of_dropped,
        window=window,
        stride=None if window is None else choose_stride(window),
        lost=lost,
        renormalized=needs_renormalization(model),
        kenlm=_kenlm_figures(
            nats - spelling + empty * _empty_line_nats(model, tokenizer),
            of_unknown,
            tokens + empty,
            unknown,
        )
        if isinstance(model, NgramForCausalLM) and model.is_normalized
        else None,
    )


def _empty_line_nats(model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """What KenLM charges for an empty line, a sentence without words."""
    return compute_nll(model, [[tokenizer.bos_token_id, tokenizer.eos_token_id]])[0].sum().item()


def _add_up(
    document: TokenizedDocument, costs: torch.Tensor, unknown_token: int | None
) -> tuple[float, ...]:
    """Nats: all, of spelling, of unknown words' tokens, of spelling dropped text; then bytes,
    words, tokens, unknown words and dropped bytes.
    """
    nats = costs.double().sum().item() + document.spelling
    is_unknown = [id == unknown_token for id in document.ids[1:]] if document.unknown else []
    of_unknown = costs[torch.tensor(is_unknown)].double().sum().item() if is_unknown else 0.0
    of_dropped = sum(map(spelling_cost, document.dropped))
    dropped_bytes = len("".join(document.dropped).encode())
    counts = (document.bytes, document.words, len(costs), len(document.unknown), dropped_bytes)
    return (nats, document.spelling, of_unknown, of_dropped, *counts)


def score_text(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> list[TokenScore]:
    """The surprisal of each token of `text` as a document, its end last (`end`); tokens that hold
    bytes of one character are one, with the first one's n-gram.

    The pieces join to the text: what the tokenizer drops begins the next piece, be it the end.
    Unknown words and dropped text have their spelling in the bits.
    """
    _, reading = next(Aligner(tokenizer).read([text]))
    ids = [tokenizer.bos_token_id, *reading.encoding.ids, tokenizer.eos_token_id]
    nats = compute_nll(model, [ids])[0].tolist()
    found = _find_counts(model, torch.tensor(ids, device=model.device))
    spelled, end = sorted([*reading.unknown, *reading.dropped], reverse=True), 0
    scores = []
    rows = [*join_tokens(reading.encoding.offsets), (len(text), len(text), [len(ids) - 2])]
    for number, (_, stop, places) in enumerate(rows, start=1):
        is_end = number == len(rows)
        stop = len(text) if is_end else max(stop, end)
        cost = sum(nats[place] for place in places)
        while spelled and (spelled[-1][1] <= stop or is_end):
            cost += spelling_cost(text[slice(*spelled.pop())])
        piece, bits = text[end:stop], cost / math.log(2)
        scores.append(
            TokenScore(text=piece, bits=bits, tokens=len(places), end=is_end, **found[places[0]])
        )
        end = stop
    return scores


def _find_counts(model: CausalModel, ids: torch.Tensor) -> list[dict[str, Any]]:
    """Of every token but the first, what `TokenScore` says of models that count."""
    if not isinstance(model, CountingModel):
        return [{}] * (len(ids) - 1)
    is_divided = needs_renormalization(model)
    facts = [
        {"order": order, "renormalized": is_divided}
        for order in model.score_tokens(ids)[1][1:].tolist()
    ]
    if (
        isinstance(model, NgramForCausalLM) and model.config.discounts is not None
    ):  # an ARPA file holds no counts
        counts, discounts = (column[1:].tolist() for column in model.find_counts(ids))
        facts = [
            f | {"count": c, "discount": d}
            for f, c, d in zip(facts, counts, discounts, strict=True)
        ]
    return facts


def needs_renormalization(model: CausalModel) -> bool:
    """Whether the model's own scores are no distribution, and are divided by their sum here."""
    return isinstance(model, CountingModel) and not model.is_normalized


def find_unk_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands for words it does not know; None where it knows every word."""
    return find_unk_token_id(tokenizer) if "unknown words" in lossy_features(tokenizer) else None


def spelling_cost(word: str) -> float:
    """What spelling an unknown word costs: each byte, and its end, among 257 symbols."""
    return (len(word.encode()) + 1) * math.log(257)


def choose_stride(window: int) -> int:
    """How far the window moves: half of it, so that a token has at least half a window before
    it.
    """
    return max(1, window // 2)


def take_texts(texts: Iterable[str], limit: int) -> list[str]:
    """The first texts, up to `limit` characters of them; of the very first, its beginning."""
    kept: list[str] = []
    size = 0
    for text in texts:
        if kept and size + len(text) > limit:
            break
        kept.append(text[:limit])
        size += len(text)
    return kept


def tokenize_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[TokenizedDocument]:
    """Each text as a document of token ids; an empty line is none."""
    for text, reading in Aligner(tokenizer).read(filter(str.strip, texts)):
        ids = [tokenizer.bos_token_id, *reading.encoding.ids, tokenizer.eos_token_id]
        unknown, dropped = (
            [text[slice(*span)] for span in spans] for spans in (reading.unknown, reading.dropped)
        )
        yield TokenizedDocument(
            ids, len(text.encode()), len(text.split()), unknown, dropped, reading.lost
        )


@torch.no_grad()
def compute_nll(model: CausalModel, documents: list[list[int]]) -> list[torch.Tensor]:
    """The cost in nats of every token but the first of each document, in float32."""
    if isinstance(model, CountingModel) and model.is_normalized:
        return _look_up(model, documents)
    costs = [torch.empty(len(ids) - 1) for ids in documents]
    forward_documents(model, documents, costs, forward_nll)
    return costs


def forward_documents(
    model: CausalModel,
    documents: list[list[int]],
    values: list[torch.Tensor],
    read: ForwardFunction,
) -> None:
    """Fill `values`, of each document (T - 1, ...), with what `read` says of every prediction in
    it, batch by batch.

    Raises `RunError` where a model that learned by gradients computes what is no number; one that
    counts may give 0.
    """
    read_all = _read_carried if model.context_length is None else _read_windows
    order = sorted(range(len(documents)), key=lambda d: len(documents[d]))
    read_all(model, [documents[d] for d in order], [values[d] for d in order], read)
    if model.get_output_embeddings() is not None:
        for value in values:
            check_finite(value)


def _look_up(model: CountingModel, documents: list[list[int]]) -> list[torch.Tensor]:
    """All documents in one row."""
    sizes = [len(ids) for ids in documents]
    row = torch.tensor(list(itertools.chain.from_iterable(documents)), device=model.device)
    log10, _ = model.score_tokens(row)
    return [costs[1:] for costs in (-math.log(10) * log10.cpu()).split(sizes)]


def _kenlm_figures(nats: float, of_unknown: float, tokens: int, unknown: int) -> dict[str, float]:
    """What KenLM's `query` prints; there an unknown word costs its <unk> and no spelling, and an
    empty line its end.
    """
    return {
        "perplexity_including_oov": perplexity(nats, tokens),
        "perplexity_excluding_oov": perplexity(nats - of_unknown, tokens - unknown),
        "oov": unknown,
        "tokens": tokens,
    }


def _read_carried(
    model: CausalModel,
    documents: list[list[int]],
    values: list[torch.Tensor],
    read: ForwardFunction,
) -> None:
    """Documents side by side from their beginnings, the state carried from one stretch to the
    next.
    """
    length = max(
        1, min(STATEFUL_TOKENS, len(documents[-1]), LOGITS_AT_ONCE // model.config.vocab_size)
    )
    rows = max(1, LOGITS_AT_ONCE // (length * model.config.vocab_size))
    for at in range(0, len(documents), rows):
        state = None
        for start in range(0, len(documents[min(at + rows, len(documents)) - 1]) - 1, length):
            pieces = [ids[start : start + length + 1] for ids in documents[at : at + rows]]
            found, state = read(model, pieces, state)
            for value, row, piece in zip(values[at : at + rows], found, pieces, strict=True):
                value[start : start + length] = row[: max(0, len(piece) - 1)]


def sliding_windows(predictions: int, window: int) -> Iterator[tuple[int, int, int]]:
    """First input, end, first new prediction of each window: the first is scored whole, others
    their last stride.
    """
    done = 0
    while done < predictions:
        end = min(predictions, window if done == 0 else done + choose_stride(window))
        yield max(0, end - window), end, done
        done = end


def _read_windows(
    model: CausalModel,
    documents: list[list[int]],
    values: list[torch.Tensor],
    read: ForwardFunction,
) -> None:
    """Windows of every document, batch_documents by length."""
    window = model.context_length or 0
    jobs = [
        (document, *job)
        for document, ids in enumerate(documents)
        for job in sliding_windows(len(ids) - 1, window)
    ]
    jobs.sort(key=lambda job: job[2] - job[1])
    rows = max(1, LOGITS_AT_ONCE // (min(window, len(documents[-1])) * model.config.vocab_size))
    for at in range(0, len(jobs), rows):
        batch = jobs[at : at + rows]
        found, _ = read(model, [documents[d][first : end + 1] for d, first, end, _ in batch], None)
        for (document, first, end, done), row in zip(batch, found, strict=True):
            values[document][done:end] = row[done - first : end - first]


def forward_nll(
    model: CausalModel, pieces: list[list[int]], state: Any
) -> tuple[torch.Tensor, Any]:
    """Costs (B, T) of each piece's tokens but its first; padding stands on the right, where
    causality ignores it.

    The head reads some positions at a time, so that the logits of all of them never stand in
    memory.
    """
    width = max(2, max(map(len, pieces)))
    rows = torch.tensor(
        [piece + [0] * (width - len(piece)) for piece in pieces], device=model.device
    )
    head, states = model.get_output_embeddings(), []

    def keep(_: Any, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        states.append(inputs[0].flatten(0, 1))
        return inputs[0][:, :0]

    with head.register_forward_pre_hook(keep) if head is not None else nullcontext():
        output = model(rows[:, :-1], past_key_values=state, use_cache=model.context_length is None)
    targets = rows[:, 1:].flatten()
    nats = torch.empty(
        len(targets), dtype=torch.float32
    )  # at once: small pieces between large ones keep memory
    at_once = max(1, LOGITS_AT_ONCE // 2 // model.config.vocab_size)  # beside as many of a softmax
    for part in (slice(at, at + at_once) for at in range(0, len(targets), at_once)):
        logits = head(states[0][part]) if states else output.logits.flatten(0, 1)[part]
        nats[part] = F.cross_entropy(logits.float(), targets[part], reduction="none")
    return nats.unflatten(0, (len(rows), width - 1)), output.past_key_values


def batch_documents(
    items: Iterable[TokenizedDocument], size: int
) -> Iterator[list[TokenizedDocument]]:
    """Lists of `size` items, the last one shorter (`itertools.batched` is Python 3.12's)."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
