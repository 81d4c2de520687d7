"""Read a model's attention weights."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rung.models.base import CausalModel, StatefulModel
from rung.models.foreign import ForeignForCausalLM


def attention_shape(model: CausalModel) -> tuple[int, int]:
    """Return the numbers of layers with attention and of heads; (0, 0) where there are none.

    Of other code than rung's none is seen.
    """
    if isinstance(model, ForeignForCausalLM):
        return 0, 0
    heads = int(getattr(model.config, "num_attention_heads", 0))
    layers = 1 if isinstance(model, StatefulModel) else int(model.config.num_hidden_layers)
    return (layers, heads) if heads else (0, 0)


@torch.no_grad()
def read_attention(model: CausalModel, ids: list[int]) -> Float[Tensor, "layers H T T"]:
    """Return the attention weights of every layer and head, from a query (row) to a key (column).

    Rows sum to 1, and a token attends to no later one. Raises `ValueError` for fewer than two
    tokens.
    """
    if len(ids) < 2:
        raise ValueError("attention needs two tokens or more")
    with _AttentionRecorder() as recorder:
        model(torch.tensor([ids], device=model.device), use_cache=False)
    return torch.stack(recorder.weights)


class _AttentionRecorder(TorchFunctionMode):
    """Intercepts the fused attention kernel, and computes the weights from its queries and keys.

    The fused kernel does not return its weights. Only calls in this thread are intercepted, so
    other threads may generate with the same model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.weights.append(_compute_weights(*args[:2]))
        return func(*args, **(kwargs or {}))


def _compute_weights(
    q: Float[Tensor, "1 H T K"], k: Float[Tensor, "1 G T K"]
) -> Float[Tensor, "H T T"]:
    """Compute softmax(q kᵀ / √K) over the keys up to each query; G key heads serve H queries."""
    q, k = q[0].float(), k[0].float().repeat_interleave(q.shape[1] // k.shape[1], dim=0)
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # H T T
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, -math.inf).softmax(-1).cpu()
