"""Where a model looks: the weights of its attention, which the fused kernels never hand out."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rung.models.base import CausalModel, StatefulModel


def attention_shape(model: CausalModel) -> tuple[int, int]:
    """How many layers look back, and with how many heads each; (0, 0) for a model without
    attention.
    """
    heads = int(getattr(model.config, "num_attention_heads", 0))
    layers = 1 if isinstance(model, StatefulModel) else int(model.config.num_hidden_layers)
    return (layers, heads) if heads else (0, 0)


@torch.no_grad()
def read_attention(model: CausalModel, ids: list[int]) -> Float[Tensor, "layers H T T"]:
    """Of every layer and head, how much each token (a row) looks at itself and each earlier one:
    rows sum to 1.

    Raises `ValueError` for fewer than two tokens: one has nothing to look back at.
    """
    if len(ids) < 2:
        raise ValueError("attention needs two tokens or more")
    with _Watcher() as watcher:
        model(torch.tensor([ids], device=model.device), use_cache=False)
    return torch.stack(watcher.seen)


class _Watcher(TorchFunctionMode):
    """Sees every call of the fused kernel in this thread, and works out the weights from the same
    queries and keys.

    No model knows of it; threads that generate with the same model meanwhile are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.seen.append(_find_weights(*args[:2]))
        return func(*args, **(kwargs or {}))


def _find_weights(
    q: Float[Tensor, "1 H T K"], k: Float[Tensor, "1 G T K"]
) -> Float[Tensor, "H T T"]:
    """softmax(q kᵀ / √K) over the keys up to each query; a group of query heads reads one key
    head.
    """
    q, k = q[0].float(), k[0].float().repeat_interleave(q.shape[1] // k.shape[1], dim=0)
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # H T T
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, -math.inf).softmax(-1).cpu()
