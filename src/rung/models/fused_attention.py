"""Causal attention for training in float32 on a CPU: products of torch, and the softmax in C.

The fused kernel of torch computes every score, those that causality hides too, and computes them
again in its backward pass. Here a block of queries meets only the keys up to its end, and its
weights are kept. A group's queries are rows over the keys that they share.
"""

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rung.compiler import Address
from rung.models.fused import find_library

BLOCK = 64  # queries
MAX_WEIGHTS = 2**24  # that are kept for the backward pass of a layer: 64 MiB


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
    if steps != k.shape[2] or steps < BLOCK or q.shape[0] * q.shape[1] * steps**2 > MAX_WEIGHTS:
        return None
    library = find_library(q, k, v)
    return None if library is None else _BlockAttention.apply(q, k, v, library)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, library: ctypes.CDLL) -> Tensor:
        (batch, heads, steps, size), shared = q.shape, k.shape[1]
        group = heads // shared
        rows, k, v = _join_group(q, shared), k.flatten(0, 1), v.flatten(0, 1)
        out = q.new_empty(batch, steps, shared, group, size)
        kept = []
        for start in range(0, steps, BLOCK):
            end = min(start + BLOCK, steps)
            weights = rows[:, start * group : end * group] @ k[:, :end].mT
            place = Address(weights, weights.shape, torch.float32)
            library.causal_softmax(*weights.shape, group, start + 1, size**-0.5, place)
            kept.append(weights)
            part = (weights @ v[:, :end]).view(batch, shared, end - start, group, size)
            out[:, start:end] = part.transpose(1, 2)
        ctx.save_for_backward(rows, k, v, *kept)
        ctx.compiled, ctx.shape = library, (batch, shared, group)
        return out.flatten(2, 3).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, k, v, *kept = ctx.saved_tensors
        batch, shared, group = ctx.shape
        (steps, size), up = k.shape[1:], _join_group(grad, shared)
        to_q = grad.new_empty(batch, steps, shared, group, size)
        to_k, to_v = torch.zeros_like(k), torch.zeros_like(v)
        for start, weights in zip(range(0, steps, BLOCK), kept, strict=True):
            end = min(start + BLOCK, steps)
            own = slice(start * group, end * group)
            to_v[:, :end] += weights.mT @ up[:, own]
            scores = up[:, own] @ v[:, :end].mT
            places = [Address(t, weights.shape, torch.float32) for t in (weights, scores)]
            ctx.compiled.softmax_back(weights.shape[0] * weights.shape[1], end, size**-0.5, *places)
            to_k[:, :end] += scores.mT @ rows[:, own]
            part = (scores @ k[:, :end]).view(batch, shared, end - start, group, size)
            to_q[:, start:end] = part.transpose(1, 2)
        to_k, to_v = (t.unflatten(0, (batch, shared)) for t in (to_k, to_v))
        return to_q.flatten(2, 3).transpose(1, 2), to_k, to_v, None


def _join_group(x: Float[Tensor, "B H T K"], shared: int) -> Float[Tensor, "BG TR K"]:
    """Make the queries of a group, of which there are R, rows after one another."""
    return x.unflatten(1, (shared, -1)).transpose(2, 3).flatten(2, 3).flatten(0, 1).contiguous()
