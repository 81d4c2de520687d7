"""Fused kernels for training: RMSNorm, and the cross-entropy of a linear head.

Each has its forward and backward pass in one. On a CPU they run in C (`fused.c`); elsewhere, and
where there is no compiler, in torch.
"""

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rung.compiler import Address, compile_source
from rung.data.packing import IGNORE_INDEX

SOURCE = Path(__file__).with_name("fused.c")
MAX_LOGITS = 2**26  # rows times vocabulary: 128 MiB in bfloat16
KERNELS = (
    *("rms_norm", "rms_norm_back", "cross_entropy", "attend", "attend_back"),
    *("swiglu", "swiglu_back", "rotate"),
)
PAIR_KERNELS = ("attend_half", "attend_half_back")  # where the processor multiplies bfloat16
DTYPES = (torch.float32, torch.bfloat16)  # those that `fused.c` knows
WEIGHT_GRAD_PARTS = 16  # partial sums of the gradient of a norm's weight

# Blends soft targets into the gradient for the logits, in place, of the rows in a slice.
BlendTargets = Callable[[Tensor, slice], None]


def rms_norm(
    x: Float[Tensor, "*B D"], weight: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "*B D"]:
    """Divide x by its root mean square, in float32, times `weight` (Zhang & Sennrich 2019).

    The C kernel returns autocast's precision, or each product that reads the result would convert
    it again.
    """
    dtype = autocast_dtype(x)
    known = x.dtype == weight.dtype == torch.float32 and dtype in DTYPES and x.numel() > 0
    library = find_library(x, weight) if known else None
    if library is not None:
        return _RMSNorm.apply(x, weight, eps, dtype, library)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def linear_cross_entropy(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    items: int | Tensor | None = None,
    blend: BlendTargets | None = None,
) -> Float[Tensor, ""]:
    """Nats of the targets under softmax(hidden weightᵀ), summed and divided by `items`.

    `items` is by default the number of targets; targets of -100 are ignored. Logits and their
    gradient are computed for some rows at a time (Wijmans et al. 2024), so N x V numbers never
    stand in memory. On a CPU, raises `IndexError` for any other target that is not below V; a GPU
    says so itself, later. With `blend` the gradient is that of soft targets, the value as without.
    """
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_targets(targets, len(hidden), len(weight))
    counted = (targets != IGNORE_INDEX).sum() if items is None else items
    return _LinearCrossEntropy.apply(hidden, weight, targets, counted, blend)


def is_unmodified(module: torch.nn.Module, kind: type[torch.nn.Module]) -> bool:
    """Whether calling `module` does only what `kind.forward` does, with weights in memory.

    False for a subclass (an adapter, a parametrization, a quantised layer), for a replaced forward,
    for hooks of any kind, and for weights that are no plain tensors. A kernel that reads a module's
    weights itself must ask this first.
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    is_own = type(module) is kind and getattr(module.forward, "__func__", None) is kind.forward
    if not is_own or any(vars(module).get(name) for name in hooks):
        return False
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    is_watched = torch.nn.modules.module._has_any_global_hook()
    return (
        all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors) and not is_watched
    )


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, library: ctypes.CDLL
    ) -> Tensor:
        x, weight, width = x.contiguous(), weight.contiguous(), x.shape[-1]
        out = torch.empty(x.shape, dtype=dtype)
        inverse = torch.empty(x.numel() // width, dtype=torch.float32)
        read = _floats(x, x.shape), _floats(weight, (width,))
        written = Address(out, x.shape, dtype), _floats(inverse, inverse.shape)
        library.rms_norm(len(inverse), width, *read, eps, *written, dtype == torch.bfloat16)
        ctx.save_for_backward(x, weight, inverse)
        ctx.compiled, ctx.dtype = library, dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        rows, width = len(inverse), len(weight)
        to_x, to_weight = (
            torch.empty_like(x),
            torch.empty(WEIGHT_GRAD_PARTS, width, dtype=torch.float32),
        )
        read = _floats(x, x.shape), _floats(weight, (width,)), _floats(inverse, (rows,))
        up = Address(grad.contiguous(), x.shape, ctx.dtype)
        written = _floats(to_x, x.shape), _floats(to_weight, (WEIGHT_GRAD_PARTS, width))
        ctx.compiled.rms_norm_back(
            rows, width, *read, up, *written, WEIGHT_GRAD_PARTS, ctx.dtype == torch.bfloat16
        )
        return to_x, to_weight.sum(0), None, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        items: int | Tensor,
        blend: BlendTargets | None,
    ) -> Tensor:
        dtype = autocast_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            states, table = hidden.to(dtype), weight.to(dtype)
            to_hidden, to_weight = torch.empty_like(states), None
            nats = torch.empty(len(states), dtype=torch.float32, device=states.device)
            step = max(1, MAX_LOGITS // len(table))
            for rows in (slice(start, start + step) for start in range(0, len(states), step)):
                grad = _costs(states[rows] @ table.T, targets[rows], nats[rows])
                if blend is not None:
                    blend(grad, rows)
                to_hidden[rows] = grad @ table
                if ctx.needs_input_grad[1]:
                    part = (grad.T @ (states[rows] / items)).to(weight.dtype)
                    to_weight = part if to_weight is None else to_weight.add_(part)
            ctx.save_for_backward((to_hidden / items).to(hidden.dtype), to_weight)
            return nats.sum() / items

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_weight = ctx.saved_tensors
        if grad.device.type != "cpu" or grad.item() != 1:
            to_hidden, to_weight = to_hidden * grad, None if to_weight is None else to_weight * grad
        return to_hidden, to_weight, None, None, None


def _costs(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], nats: Float[Tensor, " N"]
) -> Tensor:
    """Write each row's nats into `nats`, and return the gradient of their sum for the logits.

    The gradient may overwrite the logits.
    """
    library = find_library(logits, nats) if logits.dtype in DTYPES else None
    if library is not None:
        rows = logits.shape[:1]
        labels = Address(targets.contiguous(), rows, torch.int64)
        places = Address(logits, logits.shape, logits.dtype), labels, _floats(nats, rows)
        library.cross_entropy(*logits.shape, *places, logits.dtype == torch.bfloat16)
        return logits
    counted = targets != IGNORE_INDEX
    chosen = targets.where(counted, 0)[:, None]
    log_probabilities = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    nats.copy_(-log_probabilities.gather(1, chosen)[:, 0] * counted)
    grad = log_probabilities.exp_().scatter_add_(
        1, chosen, -torch.ones_like(chosen, dtype=torch.float32)
    )
    return grad.mul_(counted[:, None]).to(logits.dtype)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The precision in which a matrix product of `x` is computed."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def find_library(*tensors: Tensor) -> ctypes.CDLL | None:
    """Find the compiled `fused.c` for plain tensors on a CPU, unless torch compiles the model."""
    plain = all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" for t in tensors)
    return _compile() if plain and not torch.compiler.is_compiling() else None


def _floats(tensor: Tensor, shape: tuple[int, ...]) -> Address:
    return Address(tensor, shape, torch.float32)


def _check_targets(targets: Int[Tensor, " N"], count: int, size: int) -> None:
    """Check labels: raise `IndexError`, as torch does, for one that is no token.

    Raises `ValueError` for a wrong number of them.
    """
    if targets.shape != (count,) or targets.dtype != torch.int64:
        raise ValueError(
            f"labels are {list(targets.shape)} of {targets.dtype}: they must be [{count}] of "
            "torch.int64"
        )
    outside = targets[((targets < 0) | (targets >= size)) & (targets != IGNORE_INDEX)]
    if len(outside):
        raise IndexError(
            f"label {int(outside[0])} is no token: labels are below {size}, or {IGNORE_INDEX}"
        )


@cache
def _compile() -> ctypes.CDLL | None:
    library = compile_source(SOURCE)
    if library is not None:
        sizes, place = [c_int64, c_int64], c_void_p
        library.has_pairs.argtypes = []
        library.rms_norm.argtypes = [*sizes, place, place, c_float, place, place, c_int]
        library.rms_norm_back.argtypes = [*sizes, *[place] * 6, c_int64, c_int]
        library.cross_entropy.argtypes = [*sizes, place, place, place, c_int]
        kinds = ("attend", "attend_half") if library.has_pairs() else ("attend",)
        for kind in kinds:
            forward, back = getattr(library, kind), getattr(library, f"{kind}_back")
            forward.argtypes = [*[c_int64] * 6, *[place] * 5, c_int64, place]
            back.argtypes = [*[c_int64] * 6, *[place] * 8, c_int64, place]
        library.swiglu.argtypes = [c_int64, *[place] * 3, c_int]
        library.swiglu_back.argtypes = [c_int64, *[place] * 5, c_int]
        library.rotate.argtypes = [*[c_int64] * 4, *[place] * 4, c_int, c_int]
        for name in (*KERNELS, *(PAIR_KERNELS if library.has_pairs() else ())):
            getattr(library, name).restype = None
        library.attention_memory.argtypes = [c_int64] * 4
        library.attention_memory.restype = c_int64
    return library
