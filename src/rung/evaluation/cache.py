"""A cache: what followed the states of this document that are like the present one is likely to
follow again.

Grave, Joulin & Usunier 2017, "Improving neural language models with a continuous cache", section 3,
interpolated linearly with the model. Where the paper's stream never ends, here a document is its
own: the cache begins empty with each. A sharpness of 0 forgets the states and counts the words
(Kuhn & De Mori 1990).
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rung.evaluation.documents import (
    DOCUMENTS_AT_ONCE,
    TokenizedDocument,
    take_texts,
    tokenize_documents,
)
from rung.evaluation.likelihood import forward_documents, forward_nll
from rung.evaluation.mixture import fit_weights, mix_nll
from rung.evaluation.variants import Pace, Report, Row, Variant, score_variant
from rung.models.base import CausalModel

CACHE_STATES = 2000  # states that the cache holds
FITTED = 2**20  # characters of the validation text that the parameters are fitted on, at the most
SHARPNESSES = (
    0,
    2,
    4,
    8,
    16,
    32,
    64,
    128,
)  # tried, in units of 1 / the mean square of a state's length
STATES_AT_ONCE = 2**26  # numbers: 256 MiB in float32
QUERIES_AT_ONCE = 256


def score_with_cache(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    validation: Iterable[str],
    report: Report,
) -> Variant:
    """Score `texts` with a cache, its sharpness and its weight chosen on `validation`."""
    began = time.perf_counter()
    held = take_texts(validation, FITTED)
    theta, weight = _fit(model, tokenizer, held, Pace(report, "fit cache", len(held)))
    weights = torch.tensor([1 - weight, weight], dtype=torch.float64)
    pace = Pace(report, "cache", len(texts))

    def rows() -> Iterator[Row]:
        for document, found in pace.follow(_read_states(model, tokenizer, texts)):
            nats = _cost_both(model, document, found, [theta])
            yield document, nats[0].double().sum().item(), mix_nll(nats, weights).sum().item()

    return score_variant(
        rows(), {"weight": weight, "sharpness": theta, "size": CACHE_STATES}, held, began
    )


def compute_cache_nll(
    states: Float[Tensor, "T D"],
    targets: Int[Tensor, " T"],
    thetas: Sequence[float],
    size: int = CACHE_STATES,
) -> Float[Tensor, "thetas T"]:
    """What each target costs under the cache alone: p(w) ∝ Σ exp(θ h·h′) over the last `size`
    states h′ before h that w followed. Infinite for what it does not hold; the first target finds
    it empty.
    """
    costs = torch.full((len(thetas), len(targets)), math.inf)
    for start in range(1, len(targets), QUERIES_AT_ONCE):
        end, first = min(start + QUERIES_AT_ONCE, len(targets)), max(0, start - size)
        products = states[start:end] @ states[first : end - 1].mT
        back = torch.arange(start, end)[:, None] - torch.arange(first, end - 1)[None]
        other = ((back < 1) | (back > size)).to(products.device)
        wrong = other | (targets[start:end, None] != targets[None, first : end - 1])
        for row, theta in enumerate(thetas):
            weights = theta * products
            whole = weights.masked_fill(other, -math.inf).logsumexp(dim=1)
            costs[row, start:end] = (
                whole - weights.masked_fill(wrong, -math.inf).logsumexp(dim=1)
            ).cpu()
    return costs


def _fit(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pace: Pace
) -> tuple[float, float]:
    """The sharpness and the weight that cost the least."""
    thetas: list[float] = []
    costs = []
    for document, found in pace.follow(_read_states(model, tokenizer, texts)):
        thetas = thetas or [
            tried / found[:, 1:].square().sum(dim=1).mean().item() for tried in SHARPNESSES
        ]
        costs.append(_cost_both(model, document, found, thetas))
    nats = torch.cat(costs, dim=1)
    tried = []
    for theta, cached in zip(thetas, nats[1:], strict=True):
        pair = torch.stack([nats[0], cached])
        weights = fit_weights(pair)
        tried.append((mix_nll(pair, weights).mean().item(), theta, weights[1].item()))
    return min(tried)[1:]


def _cost_both(
    model: CausalModel, document: TokenizedDocument, found: Tensor, thetas: Sequence[float]
) -> Tensor:
    """Nats (1 + thetas, T - 1): the model's, and the cache's own, which are the model's where the
    cache is empty.
    """
    targets = torch.tensor(document.ids[1:], device=model.device)
    nats = torch.cat(
        [found[None, :, 0], compute_cache_nll(found[:, 1:].to(model.device), targets, thetas)]
    )
    nats[:, 0] = found[0, 0]
    return nats


@torch.no_grad()
def _read_states(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> Iterator[tuple[TokenizedDocument, Tensor]]:
    """Each document with (T - 1, 1 + D): the nats of its tokens, and the states that they were
    predicted from.
    """
    width = model.get_output_embeddings().in_features
    for batch in _batch(tokenize_documents(texts, tokenizer), STATES_AT_ONCE // (1 + width)):
        found = [torch.empty(len(document.ids) - 1, 1 + width) for document in batch]
        forward_documents(model, [document.ids for document in batch], found, _forward_with_states)
        yield from zip(batch, found, strict=True)


def _forward_with_states(
    model: CausalModel, pieces: list[list[int]], state: Any
) -> tuple[Tensor, Any]:
    """Return each token's cost and the hidden state it was predicted from (B, T, 1 + D)."""
    seen: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    try:
        nats, state = forward_nll(model, pieces, state)
    finally:
        hook.remove()
    return torch.cat([nats[..., None], seen[0].float().cpu()], dim=-1), state


def _batch(
    documents: Iterable[TokenizedDocument], tokens: int
) -> Iterator[list[TokenizedDocument]]:
    """Lists of documents of so many tokens at the most, or of one document."""
    batch: list[TokenizedDocument] = []
    size = 0
    for document in documents:
        if batch and (size + len(document.ids) > tokens or len(batch) == DOCUMENTS_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.ids)
    if batch:
        yield batch
