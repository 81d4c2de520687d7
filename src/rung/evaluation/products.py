"""The matrix products of scoring, by the library that multiplies fastest on this processor."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rung.device import is_onednn_faster


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """Within this context, multiply float32 on a CPU by oneDNN where that is faster than MKL.

    The products are those of `nn.Linear` and of transformers' `Conv1D`, in any model. Where
    gradients are computed, they stay as they are.
    """
    return _OneDNNProducts() if device.type == "cpu" and is_onednn_faster() else nullcontext()


class _OneDNNProducts(TorchFunctionMode):
    """Hands the products of a layer to oneDNN."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:
        if not options and function is F.linear:
            x, weight, bias = (*arguments, None)[:3]
            if _is_plain(x, weight, bias):
                return _multiply(x, weight, bias)
        elif not options and function is torch.addmm:
            bias, x, weight = arguments
            if _is_plain(x, weight.T, bias):
                return _multiply(x, weight.T, bias)
        return function(*arguments, **(options or {}))


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this is a layer's product of float32 numbers in memory, without a gradient."""
    if torch.is_autocast_enabled("cpu") or torch.is_grad_enabled() or weight.ndim != 2:
        return False
    if bias is not None and bias.shape != weight.shape[:1]:
        return False
    return all(
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.numel() > 0
        for tensor in (x, weight, bias)
        if tensor is not None
    )


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
