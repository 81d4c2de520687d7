"""The continuous cache: a token that followed a similar hidden state is likely to come again.

Grave, Joulin & Usunier 2017, "Improving neural language models with a continuous cache", section 3,
interpolated linearly with the model. The paper reads one endless stream; here the cache begins
empty with each document. With a sharpness of 0 all states count alike, which makes it a unigram
cache (Kuhn & De Mori 1990).
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
from rung.evaluation.variants import Variant, VariantRow, meter_documents, score_variant
from rung.models.base import CausalModel
from rung.progress import OnProgress, ProgressMeter

CACHE_STATES = 2000  # the states that the cache holds
FIT_CHARACTERS = 2**20  # of the validation text at most, to fit sharpness and weight on
# The sharpnesses to try, in units of 1 / the mean square of a state's length.
SHARPNESSES = (0, 2, 4, 8, 16, 32, 64, 128)
STATES_AT_ONCE = 2**26  # numbers: 256 MiB in float32
QUERIES_AT_ONCE = 256


def score_with_cache(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    validation: Iterable[str],
    on_progress: OnProgress,
) -> Variant:
    """Score `texts` with a cache whose sharpness and weight are fitted on `validation`."""
    began = time.perf_counter()
    held = take_texts(validation, FIT_CHARACTERS)
    theta, weight = fit_cache(model, tokenizer, held, on_progress)
    weights = torch.tensor([1 - weight, weight], dtype=torch.float64)
    meter = ProgressMeter(on_progress, "cache", len(texts))

    def rows() -> Iterator[VariantRow]:
        for document, found in meter_documents(_read_states(model, tokenizer, texts), meter):
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
    """Return the nats of each target under the cache alone.

    p(w) ∝ Σ exp(θ h·h′) over those of the last `size` states h′ before h that w followed. The cost
    is infinite for a token that the cache does not hold, and for the first target.
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


def fit_cache(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    on_progress: OnProgress,
) -> tuple[float, float]:
    """Return the sharpness and the weight with the least cost."""
    meter = ProgressMeter(on_progress, "fit cache", len(texts))
    thetas: list[float] = []
    costs = []
    for document, found in meter_documents(_read_states(model, tokenizer, texts), meter):
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
    """Return nats (1 + thetas, T - 1) of the model and of the cache at each theta.

    The first token, where the cache is empty, has the model's cost in all rows.
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
    """Yield each document with the nats and hidden states (T - 1, 1 + D) of its predictions."""
    width = model.get_output_embeddings().in_features
    for batch in _batch(tokenize_documents(texts, tokenizer), STATES_AT_ONCE // (1 + width)):
        found = [torch.empty(len(document.ids) - 1, 1 + width) for document in batch]
        forward_documents(model, [document.ids for document in batch], found, _forward_with_states)
        yield from zip(batch, found, strict=True)


def _forward_with_states(
    model: CausalModel,
    rows: list[list[int]],
    state: Any,
    *,
    firsts: Sequence[int] | None = None,
) -> tuple[Tensor, Any]:
    """Return each token's cost and the hidden state it was predicted from (B, T, 1 + D)."""
    seen: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    try:
        nats, state = forward_nll(model, rows, state, firsts=firsts)
    finally:
        hook.remove()
    return torch.cat([nats[..., None], seen[0].float().cpu()], dim=-1), state


def _batch(
    documents: Iterable[TokenizedDocument], tokens: int
) -> Iterator[list[TokenizedDocument]]:
    """Yield lists of documents of at most `tokens` tokens together, or of one longer document."""
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
