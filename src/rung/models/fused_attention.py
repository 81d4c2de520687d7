"""Causal attention for training in float32 on a CPU, in C (`fused.c`).

A block of queries meets only the keys up to its end, and a group's queries are rows over the keys
that they share. The backward pass computes the weights again (Dao et al. 2022, algorithm 4).
"""

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rung.compiler import Address
from rung.models.fused import find_library

BLOCK = 32  # queries
MIN_STEPS = 64  # torch is faster below


def attend_in_blocks(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B G S K"], v: Float[Tensor, "B G S K"]
) -> Float[Tensor, "B H T K"] | None:
    """Compute causal softmax(q kᵀ / √K) v, or return None where this way is not the faster one."""
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))):
        return None
    steps = q.shape[2]
    is_plain = all(t.dtype == torch.float32 for t in (q, k, v)) and q.numel() > 0
    if not is_plain or torch.is_autocast_enabled(q.device.type):
        return None
    # Each thread takes some heads of keys.
    if steps != k.shape[2] or steps < MIN_STEPS or len(q) * k.shape[1] < torch.get_num_threads():
        return None
    library = find_library(q, k, v)
    return None if library is None else _BlockAttention.apply(q, k, v, library)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, library: ctypes.CDLL) -> Tensor:
        q, k, v = (t.transpose(1, 2).contiguous() for t in (q, k, v))  # B T H K
        out, totals = torch.empty(q.shape), torch.empty(*q.shape[:3], 2)
        tensors = _floats(q, k, v, out, totals)
        library.attend(*_sizes(q, k), *tensors, *_make_memory(library, q, k))
        ctx.save_for_backward(q, k, v, totals)
        ctx.compiled = library
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, totals = ctx.saved_tensors
        library, up = ctx.compiled, grad.transpose(1, 2).contiguous()
        made = [torch.empty(t.shape) for t in (q, k, v)]
        tensors = _floats(q, k, v, up, totals, *made)
        library.attend_back(*_sizes(q, k), *tensors, *_make_memory(library, q, k))
        return *(t.transpose(1, 2) for t in made), None


def _sizes(q: Float[Tensor, "B T H K"], k: Float[Tensor, "B T G K"]) -> tuple[int, ...]:
    """Return the sizes that the kernels take: batch, steps, key heads, queries of each, size."""
    batch, steps, heads, size = q.shape
    return batch, steps, k.shape[2], heads // k.shape[2], size, BLOCK


def _make_memory(library: ctypes.CDLL, q: Tensor, k: Tensor) -> tuple[int, Address]:
    """Return the number of workers, and memory for them."""
    workers = min(torch.get_num_threads(), q.shape[0] * k.shape[2])
    _, steps, _, group, size, block = _sizes(q, k)
    memory = torch.empty(workers * library.attention_memory(steps, group, size, block))
    return workers, _floats(memory)[0]


def _floats(*tensors: Tensor) -> list[Address]:
    return [Address(tensor, tensor.shape, torch.float32) for tensor in tensors]
