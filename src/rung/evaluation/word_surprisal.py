"""The surprisal of each word of a text, with the correction for leading white space.

Most tokens of a vocabulary begin with the white space before a word, so whether a word has ended is
only known from the token after it: the product of a word's tokens is the probability that some word
begins so. Moved to where it belongs (Pimentel & Meister 2024, theorems 1 and 2; Oh & Schuler 2024):

    P(word) = P(its tokens) · B(after the word) / B(before the word)

B is the probability that the next token begins with white space or ends the text. The first word of
a text follows none, and is divided by the probability that the next token does not begin with white
space. Given what stands before, all words with the white space before them, and the end, then sum
to 1.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rung.data.tokenizer import find_control_tokens
from rung.evaluation.alignment import Aligner, Alignment, Span, join_tokens
from rung.evaluation.documents import (
    DOCUMENTS_AT_ONCE,
    NO_BOS,
    add_document_ends,
    batch_documents,
    spelling_cost,
)
from rung.evaluation.likelihood import (
    compute_nll,
    forward_documents,
    reduce_logits,
    sliding_windows,
)
from rung.evaluation.surprisal import find_ngrams
from rung.models.base import CausalModel

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, kw_only=True)
class WordScore:
    """A word of a document and its surprisal in bits, with and without the correction.

    The white space before a word belongs to it. `context` are the tokens before it that the model
    looked at, `is_unknown` is whether a part of it has no token and is spelled, `is_corrected`
    whether the tokens at its beginning and at its end say that it begins and ends there. `order`
    and `count` are those of `TokenScore`, of its first token.
    """

    document: int  # its number, from 0
    position: int  # of the word in its document, from 0
    word: str
    bits: float
    uncorrected: float
    tokens: int
    context: int
    is_unknown: bool
    is_corrected: bool
    order: int | None = None
    count: int | None = None


def find_words(text: str) -> list[Span]:
    """Return the spans of what stands between white space."""
    return [found.span() for found in _WORD.finditer(text)]


def score_words(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[tuple[str, list[Span]]],
) -> Iterator[WordScore]:
    """Yield the score of each word; a document is a text and the spans of its words.

    Tokens without a word belong to the next word, those after the last word to none. A token of
    several words belongs to the first of them.
    """
    boundaries = find_boundary_tokens(tokenizer, model.config.vocab_size)
    numbered = ((n, text, words) for n, (text, words) in enumerate(documents) if words)
    for batch in batch_documents(numbered, DOCUMENTS_AT_ONCE):
        aligned = [found for _, found in Aligner(tokenizer).align(text for _, text, _ in batch)]
        ids = [add_document_ends(found.encoding.ids, tokenizer) for found in aligned]
        costs, masses = compute_nll(model, ids), boundaries.weigh(model, ids)
        for place, (number, text, words) in enumerate(batch):
            document = _TokenizedWords(
                number, text, words, aligned[place], ids[place], costs[place], masses[place]
            )
            yield from document.score(model, boundaries)


@dataclass(frozen=True)
class BoundaryTokens:
    """The tokens that tell that a word has ended.

    `spaces` marks the tokens that begin with white space (V), `ends` those and the tokens that no
    text holds, as that of the end.
    """

    spaces: Tensor
    ends: Tensor

    def weigh(self, model: CausalModel, documents: list[list[int]]) -> list[Tensor]:
        """Return (T, 2) for each document: the logarithms of two probabilities of each next token.

        They are that it is one of `ends`, and that it is none of `spaces`. The last row is of the
        token after the document. Where no token begins with white space all are 0.
        """
        if not self.spaces.any():
            return [torch.zeros(len(ids), 2) for ids in documents]
        reduce = partial(
            _weigh_logits, ends=self.ends.to(model.device), spaces=self.spaces.to(model.device)
        )
        masses = [torch.zeros(len(ids), 2) for ids in documents]
        # One token more, of any kind, so that the last one's successor is predicted.
        longer = [[*ids, ids[-1] if ids[-1] != NO_BOS else 0] for ids in documents]
        forward_documents(model, longer, masses, partial(reduce_logits, reduce=reduce, features=2))
        shares = torch.stack([self.ends, ~self.spaces]).double().mean(dim=1).log().float()
        for ids, mass in zip(documents, masses, strict=True):
            if ids[0] == NO_BOS:  # every token is as likely
                mass[0] = shares
        return masses


def _weigh_logits(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], ends: Tensor, spaces: Tensor
) -> Float[Tensor, "N 2"]:
    total = logits.logsumexp(dim=1)
    parts = [logits[:, ends].logsumexp(dim=1), logits[:, ~spaces].logsumexp(dim=1)]
    return torch.stack([part - total for part in parts], dim=1)


def find_boundary_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> BoundaryTokens:
    """Find the tokens that begin with white space, by decoding each after a letter.

    There are none where a prefix marks the tokens inside a word, as in WordPiece: such a tokenizer
    cuts off punctuation too, and its tokens do not say where words end.
    """
    aligner, control = Aligner(tokenizer), find_control_tokens(tokenizer)
    decoder = aligner.decoder
    spaces, ends = torch.zeros(2, vocab_size, dtype=torch.bool)
    letter = len(decoder.decode(["a"]))
    for token, id in tokenizer.get_vocab().items():
        if id not in control and id < vocab_size and not aligner.prefix:
            spaces[id] = decoder.decode(["a", token])[letter:][:1].isspace()
    ends[[id for id in control if id < vocab_size]] = True
    return BoundaryTokens(spaces, spaces | ends)


@dataclass(frozen=True)
class _TokenizedWords:
    """A document, the spans of its words, its tokens, and what the model makes of them."""

    number: int
    text: str
    words: list[Span]
    aligned: Alignment
    ids: list[int]  # from BOS on; the token at place p of `nats` is ids[p + 1]
    nats: Tensor  # (T - 1)
    masses: Tensor  # (T, 2)

    def score(self, model: CausalModel, boundaries: BoundaryTokens) -> Iterator[WordScore]:
        owners, begins = self._assign_tokens()
        spelled = self._assign_spelling()
        ngrams = find_ngrams(model, torch.tensor(self.ids, device=model.device))
        context = self._count_context(model)
        for place, (start, stop) in enumerate(self.words):
            nats = self.nats[owners[place]].double().sum().item()
            nats += sum(map(spelling_cost, spelled.get(place, [])))
            before = self._log_mass(begins[place], boundaries)
            after = self._log_mass(begins[place + 1], boundaries)
            exact = nats - (after or 0.0) + (before or 0.0) if math.isfinite(nats) else nats
            found = ngrams[begins[place]] if owners[place] else {}
            seen = found["order"] - 1 if found else context[begins[place]]
            yield WordScore(
                document=self.number,
                position=place,
                word=self.text[start:stop],
                bits=exact / math.log(2),
                uncorrected=nats / math.log(2),
                tokens=len(owners[place]),
                context=seen,
                is_unknown=any(s < stop and start < e for s, e in self.aligned.unknown),
                is_corrected=before is not None and after is not None and bool(owners[place]),
                order=found.get("order"),
                count=found.get("count"),
            )

    def _assign_tokens(self) -> tuple[list[list[int]], list[int]]:
        """Return the places of each word's tokens, and where each word begins, and what follows.

        A word without a token of its own begins where the next one does.
        """
        owners: list[list[int]] = [[] for _ in self.words]
        word, tail = 0, len(self.aligned.encoding.ids)
        for start, _, places in join_tokens(self.aligned.encoding.offsets):
            while word < len(self.words) and self.words[word][1] <= start:
                word += 1
            if word == len(self.words):
                tail = min(tail, places[0])
                continue
            owners[word] += places
        begins = [tail]
        for places in reversed(owners):
            begins.append(places[0] if places else begins[-1])
        return owners, begins[::-1]

    def _assign_spelling(self) -> dict[int, list[str]]:
        """Return what is spelled of each word: its unknown parts, and text dropped in or before it.

        Text that is dropped after the last word belongs to the last word.
        """
        spelled: dict[int, list[str]] = {}
        for start, stop in (*self.aligned.unknown, *self.aligned.dropped):
            owner = next((n for n, (_, end) in enumerate(self.words) if start < end), -1)
            spelled.setdefault(owner % len(self.words), []).append(self.text[start:stop])
        return spelled

    def _log_mass(self, place: int, boundaries: BoundaryTokens) -> float | None:
        """Return the logarithm of the mass that a word's beginning at this token is divided by.

        It is None where the token there does not say that a word begins or the text ends.
        """
        if not boundaries.spaces.any():
            return None
        if place + 1 == len(self.ids) or boundaries.ends[self.ids[place + 1]]:
            return self.masses[place, 0].item()
        return self.masses[place, 1].item() if place == 0 else None

    def _count_context(self, model: CausalModel) -> Sequence[int]:
        """Return for each token how many tokens before it the model looks at, BOS left out."""
        places = range(len(self.ids))
        window, skipped = model.context_length, self.ids[0] == NO_BOS
        if window is None:
            return places
        seen = [0] * len(places)
        for first, end, done in sliding_windows(len(places) - skipped, window):
            for place in range(done + skipped, min(end + skipped, len(places))):
                seen[place] = place - first if first == 0 or skipped else place - first + 1
        return seen
