"""The models that texts are coded under: plainly, mixed, or with a cache; and proofs of scores."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rung.compiler import fingerprint_build
from rung.data.tokenizer import find_unk_token_id, lossy_features
from rung.errors import RunError
from rung.evaluation.coding import CodedDocument, DocumentCoder, DocumentTokens
from rung.evaluation.documents import NO_BOS, tokenize_documents
from rung.evaluation.quantized_probabilities import (
    CachedProbabilities,
    MixedProbabilities,
    Predictor,
    SteppedProbabilities,
)
from rung.generation.native import STEP_SOURCE
from rung.models.base import CausalModel
from rung.models.exact_probabilities import ExactProbabilities
from rung.progress import OnProgress, ignore_progress
from rung.workflows.stepping import ModelStepper

STREAMS = 256  # documents side by side, at most
NUMBERS_AT_ONCE = 2**27  # keys and values, and logits, of all streams: 512 MiB each in float32


@dataclass(frozen=True)
class CodingModel:
    """The models that texts are coded under, and how: plainly, mixed, or with a cache.

    `variant` has `weights` of several models, or `weight` and `sharpness` of the cache, or nothing.
    """

    models: Mapping[str, CausalModel]  # by the run's name
    tokenizer: PreTrainedTokenizerBase
    variant: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def exact(self) -> list[ExactProbabilities | None]:
        """The whole numbers of each model that counts."""
        return [model.make_exact_probabilities() for model in self.models.values()]

    def make_predictor(self) -> Predictor:
        """Make a predictor that has read nothing."""
        each = list(self.models.values())
        if "sharpness" in self.variant:
            stepper = ModelStepper(each[0], keeps_states=True)
            return CachedProbabilities(stepper, self.variant["weight"], self.variant["sharpness"])
        found: list[Predictor] = [
            exact or SteppedProbabilities(ModelStepper(model))
            for model, exact in zip(each, self.exact, strict=True)
        ]
        return MixedProbabilities(found, self.variant["weights"]) if len(found) > 1 else found[0]

    def make_coder(self, streams: int, on_progress: OnProgress) -> DocumentCoder:
        """Make a coder of documents."""
        knows_all = "unknown words" not in lossy_features(self.tokenizer)
        unknown = None if knows_all else find_unk_token_id(self.tokenizer)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        tokens = DocumentTokens(NO_BOS if bos is None else bos, eos, unknown)
        return DocumentCoder(self.make_predictor(), tokens, streams, on_progress)

    def choose_streams(self) -> int:
        """Choose how many documents are coded side by side, by the memory that they take."""
        sizes = [1]
        for model in self.models.values():
            config = model.config
            layers = getattr(config, "num_hidden_layers", 1)
            width = getattr(config, "hidden_size", 1)
            sizes += [2 * layers * width * (model.context_length or 1), 4 * config.vocab_size]
        return max(1, min(STREAMS, NUMBERS_AT_ONCE // max(sizes)))

    def describe_build(self) -> dict[str, Any]:
        """Describe what a neural model's last bits depend on; nothing of models that count."""
        if all(self.exact):
            return {}
        return {
            "torch": torch.__version__,
            "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "step": fingerprint_build(STEP_SOURCE),
            "threads": torch.get_num_threads(),
        }


def prove_score(
    coding: CodingModel,
    texts: Sequence[str],
    nats: float,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """Code the texts as the ruler scores them, decode them, and return the size beside the score.

    Raises `RunError` where they do not come back.
    """
    documents = [
        CodedDocument(list(each.ids), [piece.encode() for piece in (*each.unknown, *each.dropped)])
        for each in tokenize_documents(texts, coding.tokenizer)
    ]
    streams = coding.choose_streams()
    code = coding.make_coder(streams, on_progress).encode(documents)
    total = sum(len(document.ids) - 1 for document in documents)
    found = coding.make_coder(streams, on_progress).decode(code, len(documents), total)
    if found != documents:
        raise RunError("the text that was coded does not come back: its score is not proven")
    return {"coded_bytes": len(code), "score_bytes": nats / math.log(2) / 8}
