"""Causal attention for training on a CPU, in C (`fused.c`).

In float32 everywhere, and in bfloat16 where the processor multiplies it. A block of queries meets
only the keys up to its end, and a group's queries are rows over the keys that they share. The
backward pass computes the weights again (Dao et al. 2022, algorithm 4).
"""

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rung.compiler import Address
from rung.models.fused import DTYPES, autocast_dtype, find_library

BLOCK = 32  # queries
MIN_STEPS = 64  # torch is faster below


def attend_in_blocks(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B G S K"], v: Float[Tensor, "B G S K"]
) -> Float[Tensor, "B H T K"] | None:
    """Compute causal softmax(q kᵀ / √K) v, or return None where this way is not the faster one."""
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))):
        return None
    steps, dtype = q.shape[2], autocast_dtype(q)
    if dtype not in DTYPES or q.numel() == 0 or any(t.dtype not in DTYPES for t in (q, k, v)):
        return None
    # Each thread takes some heads of keys.
    if steps != k.shape[2] or steps < MIN_STEPS or len(q) * k.shape[1] < torch.get_num_threads():
        return None
    q, k, v = (t.to(dtype) for t in (q, k, v))
    library = find_library(q, k, v)
    if library is None or not _serves(library, dtype, q.shape[-1]):
        return None
    return _BlockAttention.apply(q, k, v, library)


def _serves(library: ctypes.CDLL, dtype: torch.dtype, size: int) -> bool:
    """Whether the library attends in `dtype`, and nothing on this processor is faster.

    bfloat16 is multiplied in pairs. Tiles (AMX) multiply it much faster, in torch.
    """
    if dtype == torch.float32:
        return True
    has_tiles = torch.cpu.get_capabilities().get("amx_bf16", False)
    return bool(library.has_pairs()) and size % 2 == 0 and not has_tiles


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, library: ctypes.CDLL) -> Tensor:
        q, k, v = (t.transpose(1, 2).contiguous() for t in (q, k, v))  # B T H K
        out, totals = torch.empty(q.shape, dtype=q.dtype), _empty(*q.shape[:3], 2)
        attend = library.attend if q.dtype == torch.float32 else library.attend_half
        attend(*_sizes(q, k), *map(_locate, (q, k, v, out, totals)), *_make_memory(library, q, k))
        ctx.save_for_backward(q, k, v, totals)
        ctx.compiled = library
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, totals = ctx.saved_tensors
        library, up = ctx.compiled, grad.transpose(1, 2).contiguous()
        made = [torch.empty(t.shape, dtype=t.dtype) for t in (q, k, v)]
        tensors = map(_locate, (q, k, v, up, totals, *made))
        attend = library.attend_back if q.dtype == torch.float32 else library.attend_half_back
        attend(*_sizes(q, k), *tensors, *_make_memory(library, q, k))
        return *(t.transpose(1, 2) for t in made), None


def _sizes(q: Float[Tensor, "B T H K"], k: Float[Tensor, "B T G K"]) -> tuple[int, ...]:
    """Return the sizes that the kernels take: batch, steps, key heads, queries of each, size."""
    batch, steps, heads, size = q.shape
    return batch, steps, k.shape[2], heads // k.shape[2], size, BLOCK


def _make_memory(library: ctypes.CDLL, q: Tensor, k: Tensor) -> tuple[int, Address]:
    """Return the number of workers, and memory for them."""
    workers = min(torch.get_num_threads(), q.shape[0] * k.shape[2])
    _, steps, _, group, size, block = _sizes(q, k)
    memory = _empty(workers * library.attention_memory(steps, group, size, block))
    return workers, _locate(memory)


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


def _locate(tensor: Tensor) -> Address:
    return Address(tensor, tensor.shape, tensor.dtype)
