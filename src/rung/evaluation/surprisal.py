"""The surprisal of each token of a text, in bits."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rung.errors import RunError
from rung.evaluation.alignment import Aligner, join_tokens
from rung.evaluation.documents import add_document_ends, spelling_cost
from rung.evaluation.likelihood import compute_nll, needs_renormalization
from rung.models.base import CausalModel, CountingModel
from rung.models.ngram.model import NgramForCausalLM


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """A piece of a text and its surprisal in bits.

    An n-gram model adds the order it found the token at, how often it saw it there (255 stands for
    255 or more), and the discount of that count.
    """

    text: str
    bits: float
    tokens: int = 1  # more than one where a character is cut into several tokens
    end: bool = False  # whether this is the end of the document
    order: int | None = None
    count: int | None = None
    discount: float | None = None
    renormalized: bool = False  # as in `Score`


def score_text(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> list[TokenScore]:
    """Return the surprisal of each token of `text`, read as a document; the end comes last.

    Without a begin-of-text token the first token costs log2 V bits; without an end-of-text token
    there is no end. Raises `RunError` where nothing is left to score.

    Tokens that hold the bytes of one character are one piece, with the first one's n-gram. The
    pieces join to the text: dropped text begins the next piece, which may be the end. The bits of a
    piece include the spelling of its unknown words and dropped text.
    """
    _, aligned = next(Aligner(tokenizer).align([text]))
    ids = add_document_ends(aligned.encoding.ids, tokenizer)
    has_end = tokenizer.eos_token_id is not None
    nats = compute_nll(model, [ids])[0].tolist()
    found = find_ngrams(model, torch.tensor(ids, device=model.device))
    spelled, end = sorted([*aligned.unknown, *aligned.dropped], reverse=True), 0
    scores = []
    rows = join_tokens(aligned.encoding.offsets)
    if has_end:
        rows.append((len(text), len(text), [len(ids) - 2]))
    if not rows:
        raise RunError("there is no token to score: name a text with words in it")
    for number, (_, stop, places) in enumerate(rows, start=1):
        is_last = number == len(rows)
        stop = len(text) if is_last else max(stop, end)
        cost = sum(nats[place] for place in places)
        while spelled and (spelled[-1][1] <= stop or is_last):
            cost += spelling_cost(text[slice(*spelled.pop())])
        piece, bits = text[end:stop], cost / math.log(2)
        scores.append(
            TokenScore(
                text=piece,
                bits=bits,
                tokens=len(places),
                end=is_last and has_end,
                **found[places[0]],
            )
        )
        end = stop
    return scores


def find_ngrams(model: CausalModel, ids: torch.Tensor) -> list[dict[str, Any]]:
    """Return the n-gram fields of `TokenScore` for every token but the first."""
    if not isinstance(model, CountingModel):
        return [{}] * (len(ids) - 1)
    is_renormalized = needs_renormalization(model)
    facts = [
        {"order": order, "renormalized": is_renormalized}
        for order in model.score_tokens(ids)[1][1:].tolist()
    ]
    # A model that was read from an ARPA file has no counts.
    if isinstance(model, NgramForCausalLM) and model.config.discounts is not None:
        counts, discounts = (column[1:].tolist() for column in model.find_counts(ids))
        facts = [
            f | {"count": c, "discount": d}
            for f, c, d in zip(facts, counts, discounts, strict=True)
        ]
    return facts
