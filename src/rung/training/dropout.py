"""Dropout in training for models that have none of their own, such as Llama.

It is applied where GPT-2 has it (Srivastava et al. 2014; Radford et al. 2019): to embeddings and to
everything that is added to the residual stream. Hooks apply it and are removed again, so a saved
model and its configuration know nothing of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from rung.models.base import CausalModel
from rung.models.initialization import RESIDUAL_PROJECTIONS


@contextmanager
def apply_dropout(model: CausalModel, probability: float) -> Iterator[None]:
    """Let the model drop channels with this probability while it trains inside the context."""

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return F.dropout(output, probability, module.training)

    dropped = [
        part
        for name, part in model.named_modules()
        if isinstance(part, nn.Embedding) or name.endswith(RESIDUAL_PROJECTIONS)
    ]
    handles = [part.register_forward_hook(drop) for part in dropped] if probability else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
