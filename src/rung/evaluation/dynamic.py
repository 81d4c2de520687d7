"""Dynamic evaluation: the model keeps learning from the text that it has been scored on.

Krause, Kahembwe, Murray & Renals 2018, "Dynamic evaluation of neural sequence models", section 4:
after each segment a step down its gradient, each weight's divided by the root mean square that its
gradient had on training text (`rms`), and a pull back to the trained weights, stronger on weights
whose gradients are large. A token is scored before it is learned from, so the score is still the
length of a code. The weights are carried from one document to the next as in the paper: the score
depends on their order, which is the corpus's.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rung.evaluation.documents import TokenizedDocument, take_texts, tokenize_documents
from rung.evaluation.likelihood import forward_nll, sliding_windows
from rung.evaluation.mixture import compute_nll_per_model
from rung.evaluation.variants import Variant, meter_documents, score_variant
from rung.models.base import CausalModel, RecurrentState
from rung.progress import OnProgress, ProgressMeter

SEGMENT_TOKENS = 64  # tokens between steps
RMS_CHARACTERS = 2**16  # of the training text, to measure the gradients' size on
FIT_CHARACTERS = 2**15  # of the validation text at most, to choose the settings on
LEARNING_RATES = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
DECAYS = (0.0, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True, kw_only=True)
class DynamicSettings:
    """How fast the weights follow the text, and how strongly they decay to the trained ones."""

    learning_rate: float
    decay: float


def score_dynamically(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    validation: Iterable[str],
    train: Iterable[str],
    on_progress: OnProgress,
) -> Variant:
    """Score `texts` while learning from them, then restore the trained weights."""
    began = time.perf_counter()
    held = take_texts(validation, FIT_CHARACTERS)
    # cuDNN's RNNs compute gradients in training mode only.
    with torch.backends.cudnn.flags(enabled=False), DynamicModel(model) as learner:
        known = list(tokenize_documents(take_texts(train, RMS_CHARACTERS), tokenizer))
        learner.measure(known, ProgressMeter(on_progress, "measuring", len(known)))
        settings = _choose(learner, list(tokenize_documents(held, tokenizer)), on_progress)
        costs = meter_documents(
            compute_nll_per_model([model], tokenizer, texts),
            ProgressMeter(on_progress, "scoring", len(texts)),
        )
        plain = [nats.double().sum().item() for _, nats in costs]
        learned = learner.follow(
            tokenize_documents(texts, tokenizer),
            settings,
            ProgressMeter(on_progress, "dynamic", len(texts)),
        )
        rows = (
            (document, before, nats.double().sum().item())
            for before, (document, nats) in zip(plain, learned, strict=True)
        )
        fitted = {**asdict(settings), "segment": SEGMENT_TOKENS, "carried_over_documents": True}
        return score_variant(rows, fitted, held, began)


class DynamicModel:
    """A model whose weights follow the text that it reads.

    It is a context manager, which puts the trained weights back at its end.
    """

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.trained = [p.detach().clone() for p in self.weights]
        self.rms = [torch.ones_like(p) for p in self.trained]
        self.mean_rms = 1.0

    def __enter__(self) -> "DynamicModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the trained weights back."""
        for weight, trained in zip(self.weights, self.trained, strict=True):
            weight.copy_(trained)
            weight.grad = None

    def measure(self, documents: Iterable[TokenizedDocument], meter: ProgressMeter) -> None:
        """Find the root mean square of each weight's gradient over these documents' segments."""
        squares = [torch.zeros_like(weight) for weight in self.trained]
        segments = 0
        for document in documents:
            for costs in self._read(document.ids):
                self._find_gradient(costs)
                segments += 1
                for square, weight in zip(squares, self.weights, strict=True):
                    if weight.grad is not None:
                        square.addcmul_(weight.grad, weight.grad)
            meter.step(len(document.ids) - 1, items=1)
        self.rms = [(square / max(segments, 1)).sqrt() for square in squares]
        count = sum(rms.numel() for rms in self.rms)
        self.mean_rms = sum(rms.double().sum().item() for rms in self.rms) / count or 1.0

    def follow(
        self,
        documents: Iterable[TokenizedDocument],
        settings: DynamicSettings,
        meter: ProgressMeter,
    ) -> Iterator[tuple[TokenizedDocument, Tensor]]:
        """Yield each document with the nats (T - 1) of its tokens, from the trained weights on.

        Each segment is scored first and learned from afterwards.
        """
        self.restore()
        for document in documents:
            nats = []
            for costs in self._read(document.ids):
                nats.append(costs.detach())
                self._find_gradient(costs)
                self._step(settings)
                meter.step(len(costs))
            meter.step(0, items=1)
            yield document, torch.cat(nats)
        self.restore()

    def _read(self, ids: list[int]) -> Iterator[Tensor]:
        """Yield the nats of each segment, its tokens predicted from the ruler's windows."""
        window = self.model.context_length
        state: Any = None
        if window is None:
            for start in range(0, len(ids) - 1, SEGMENT_TOKENS):
                costs, state = forward_nll(
                    self.model, [ids[start : start + SEGMENT_TOKENS + 1]], state
                )
                state = RecurrentState(
                    tuple(tensor.detach() for tensor in state.tensors), state.length
                )
                yield costs[0, : len(ids) - 1 - start]
            return
        for first, end, done in sliding_windows(len(ids) - 1, window):
            for start in range(done, end, SEGMENT_TOKENS):
                stop = min(start + SEGMENT_TOKENS, end)
                yield forward_nll(self.model, [ids[first : stop + 1]], None)[0][
                    0, start - first : stop - first
                ]

    def _find_gradient(self, costs: Tensor) -> None:
        """Compute the gradient; a shorter segment has proportionally less weight."""
        for weight in self.weights:
            weight.grad = None
        (costs.sum() / SEGMENT_TOKENS).backward()

    @torch.no_grad()
    def _step(self, settings: DynamicSettings) -> None:
        """Take the step θ ← θ − η g / (rms + ε) + λ (θ₀ − θ) · rms / mean rms (section 4.2).

        The decay never overshoots θ₀. ε is the mean rms, so that a weight with hardly any gradient
        in training makes no large step.
        """
        for weight, trained, rms in zip(self.weights, self.trained, self.rms, strict=True):
            pull = (settings.decay / self.mean_rms * rms).clamp(max=1).mul_(trained - weight)
            if weight.grad is not None:
                weight.addcdiv_(weight.grad, rms + self.mean_rms, value=-settings.learning_rate)
            weight.add_(pull)


def _choose(
    learner: DynamicModel, documents: list[TokenizedDocument], on_progress: OnProgress
) -> DynamicSettings:
    """Choose the best learning rate, then the best decay at it, by the cost of the documents."""
    meter = ProgressMeter(
        on_progress, "fit dynamic", len(documents) * (len(LEARNING_RATES) + len(DECAYS))
    )

    def cost(settings: DynamicSettings) -> float:
        nats = sum(
            nats.double().sum().item() for _, nats in learner.follow(documents, settings, meter)
        )
        return math.inf if math.isnan(nats) else nats  # NaN where the steps were too long

    best = min(
        (DynamicSettings(learning_rate=rate, decay=DECAYS[0]) for rate in LEARNING_RATES), key=cost
    )
    return min((replace(best, decay=decay) for decay in DECAYS), key=cost)
