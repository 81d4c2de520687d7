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
        if not options and function is F.linear and _are_plain(*arguments):
            x, weight, *bias = arguments
            return _multiply(x, weight, bias[0] if bias else None)
        if not options and function is torch.addmm and _are_plain(*arguments):
            bias, x, weight = arguments
            return _multiply(x, weight.T, bias)
        return function(*arguments, **(options or {}))


def _are_plain(*tensors: Tensor | None) -> bool:
    """Whether these are float32 numbers in memory, whose product is float32 without a gradient."""
    if torch.is_autocast_enabled("cpu") or torch.is_grad_enabled():
        return False
    return all(
        tensor is None
        or (
            type(tensor) in (Tensor, torch.nn.Parameter)
            and tensor.dtype == torch.float32
            and tensor.numel() > 0
        )
        for tensor in tensors
    )


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
