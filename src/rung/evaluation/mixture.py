"""Mixtures: the probabilities of several models, averaged with weights fitted on validation text.

Linear interpolation (Jelinek & Mercer 1980): p = Σ w_k p_k, the weights the same for every token.
The tokens must be the same ones, so the models share a tokenizer.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rung.evaluation.documents import (
    DOCUMENTS_AT_ONCE,
    TokenizedDocument,
    batch_documents,
    take_texts,
    tokenize_documents,
)
from rung.evaluation.likelihood import compute_nll, needs_renormalization
from rung.evaluation.variants import Variant, meter_documents, score_variant
from rung.models.base import CausalModel
from rung.progress import OnProgress, ProgressMeter

FIT_CHARACTERS = 2**22  # of the validation text at most, to fit the weights on
TOLERANCE = 1e-6  # nats per token between the fitted weights and the best ones
EM_ROUNDS = 2000


def score_mixture(
    models: Mapping[str, CausalModel],
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    validation: Iterable[str],
    on_progress: OnProgress,
) -> Variant:
    """Score `texts` under the mixture of the named `models`; the first is the plain model."""
    began = time.perf_counter()
    held = take_texts(validation, FIT_CHARACTERS)
    each = list(models.values())
    weights = fit_mixture(each, tokenizer, held, on_progress)
    meter = ProgressMeter(on_progress, "mix", len(texts))
    rows = (
        (document, nats[0].double().sum().item(), mix_nll(nats, weights).sum().item())
        for document, nats in meter_documents(compute_nll_per_model(each, tokenizer, texts), meter)
    )
    fitted: dict[str, Any] = {"weights": dict(zip(models, weights.tolist(), strict=True))}
    fitted["renormalized"] = [
        name for name, model in models.items() if needs_renormalization(model)
    ]
    return score_variant(rows, fitted, held, began)


def fit_mixture(
    models: Sequence[CausalModel],
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    on_progress: OnProgress,
) -> Float[Tensor, " K"]:
    """Fit the mixture weights of the models to the texts."""
    meter = ProgressMeter(on_progress, "fit mix", len(texts))
    found = meter_documents(compute_nll_per_model(models, tokenizer, texts), meter)
    return fit_weights(torch.cat([nats for _, nats in found], dim=1))


def fit_weights(nats: Float[Tensor, "K N"]) -> Float[Tensor, " K"]:
    """Fit the mixture weights of K models to N tokens by expectation maximisation, in float64.

    `nats` are the tokens' costs under each model. Each round multiplies a weight by the mean share
    of its model in the mixture's probability. The likelihood is concave in the weights, and the
    largest of these factors bounds the gain that is left, which says when to stop (Cover 1984).
    """
    nats = nats[:, nats.isfinite().any(dim=0)].double()
    weights = torch.full((len(nats),), 1 / len(nats), dtype=torch.float64)
    if nats.shape[1] == 0:
        return weights
    likelihoods = (nats.amin(dim=0) - nats).exp()  # K N, the best model's 1
    for _ in range(EM_ROUNDS):
        factors = (likelihoods / (weights @ likelihoods)).mean(dim=1)
        if factors.max() <= math.exp(TOLERANCE):
            break
        weights = weights * factors
    return weights / weights.sum()


def mix_nll(nats: Float[Tensor, "K N"], weights: Float[Tensor, " K"]) -> Float[Tensor, " N"]:
    """Return the nats of N tokens under the mixture, in float64."""
    return -(weights.log()[:, None] - nats.double()).logsumexp(dim=0)


def compute_nll_per_model(
    models: Sequence[CausalModel], tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> Iterator[tuple[TokenizedDocument, Tensor]]:
    """Yield each document with the nats (K, T - 1) of its tokens under each model."""
    for batch in batch_documents(tokenize_documents(texts, tokenizer), DOCUMENTS_AT_ONCE):
        costs = [compute_nll(model, [document.ids for document in batch]) for model in models]
        for document, *nats in zip(batch, *costs, strict=True):
            yield document, torch.stack(nats)
