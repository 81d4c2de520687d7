"""Elementwise parts of Llama's layers for training on a CPU, in C: SwiGLU and rotation.

They read float32 or bfloat16, and return what they read; the sums between are float32. Each
function returns None where the kernel does not serve: without gradients, in another precision, on
another device, and where there is no compiler. Its caller then does the same in torch.
"""

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rung.compiler import Address
from rung.models.fused import DTYPES, autocast_dtype, find_library


def multiply_silu(
    gate: Float[Tensor, "*B D"], up: Float[Tensor, "*B D"]
) -> Float[Tensor, "*B D"] | None:
    """Compute silu(gate) * up in one pass (Shazeer 2020)."""
    library = _find_training_library(gate, up) if up.dtype == gate.dtype else None
    return None if library is None else _SwiGLU.apply(gate, up, library)


def rotate(
    x: Float[Tensor, "B H T K"], cos: Float[Tensor, "#B 1 T K"], sin: Float[Tensor, "#B 1 T K"]
) -> Float[Tensor, "B H T K"] | None:
    """Turn each pair of channels (i, i + K/2); the first half of the sines is negative."""
    is_known = cos.dtype == sin.dtype == torch.float32
    library = _find_training_library(x, cos, sin) if is_known else None
    return None if library is None else _Rotation.apply(x, cos, sin, library)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, library: ctypes.CDLL) -> Tensor:
        gate, up, out = (
            gate.contiguous(),
            up.contiguous(),
            torch.empty(gate.shape, dtype=gate.dtype),
        )
        places = (Address(t, gate.shape, gate.dtype) for t in (gate, up, out))
        library.swiglu(gate.numel(), *places, gate.dtype == torch.bfloat16)
        ctx.save_for_backward(gate, up)
        ctx.compiled = library
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        all_five = (gate, up, grad.contiguous(), to_gate, to_up)
        places = (Address(t, gate.shape, gate.dtype) for t in all_five)
        ctx.compiled.swiglu_back(gate.numel(), *places, gate.dtype == torch.bfloat16)
        return to_gate, to_up, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, library: ctypes.CDLL) -> Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.compiled = library
        return _rotate(library, x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _rotate(ctx.compiled, grad, *ctx.saved_tensors, back=True), None, None, None


def _rotate(
    library: ctypes.CDLL, x: Tensor, cos: Tensor, sin: Tensor, *, back: bool
) -> Float[Tensor, "B H T K"]:
    """Rotate x, which lies in memory as (B, T, H, K) where a projection has made it."""
    x = x.transpose(1, 2).contiguous()
    (batch, steps, heads, size), out = x.shape, torch.empty(x.shape, dtype=x.dtype)
    sizes, angles = (
        (batch * steps, heads, size, cos.shape[0] * steps),
        (cos.shape[0], 1, steps, size),
    )
    read = Address(x, x.shape, x.dtype), *(Address(t, angles, torch.float32) for t in (cos, sin))
    library.rotate(*sizes, *read, Address(out, x.shape, x.dtype), back, x.dtype == torch.bfloat16)
    return out.transpose(1, 2)


def _find_training_library(x: Tensor, *others: Tensor) -> ctypes.CDLL | None:
    """Find the kernels where `x` is of a training pass in float32 or bfloat16, with numbers in it.

    Under autocast it is what a product returned, in autocast's precision.
    """
    is_training = torch.is_grad_enabled() and x.requires_grad and x.numel() > 0
    if not is_training or x.dtype not in DTYPES or autocast_dtype(x) != x.dtype:
        return None
    return find_library(x, *others)
