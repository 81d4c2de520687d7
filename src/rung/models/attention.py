"""Causal attention: masks, heads, and which kernel computes it where.

Axes as in base.py; G key-value heads, of which each serves H / G query heads.
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from rung.models.base import AttentionMask
from rung.models.forward_options import Intermediates
from rung.models.fused_attention import attend_in_blocks


def split_heads(x: Float[Tensor, "B T HK"], heads: int) -> Float[Tensor, "B H T K"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Float[Tensor, "B H T K"]) -> Float[Tensor, "B T HK"]:
    return x.transpose(1, 2).flatten(2)


def causal_mask(
    attention_mask: AttentionMask | None, queries: int, keys: int
) -> Bool[Tensor, "#B 1 T keys"] | None:
    """Mark the keys that each query may look at; None where causality alone decides.

    The queries are the last `queries` of the `keys`. A padding token sees itself, so that no row of
    the softmax is empty. A mask of four axes is taken as it is. Raises `ValueError` for a mask that
    does not cover the past.
    """
    if attention_mask is not None and attention_mask.ndim == 4:
        return as_boolean_mask(attention_mask[..., :keys])
    if attention_mask is None or bool(attention_mask.all()):
        if queries in (1, keys):
            return None
        return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
    if attention_mask.shape[1] != keys:
        raise ValueError(
            f"the attention mask covers {attention_mask.shape[1]} of {keys} tokens: it must cover "
            "the past"
        )
    key = torch.arange(keys, device=attention_mask.device)
    query = key[keys - queries :, None]
    return (((key <= query) & attention_mask[:, None, :].bool()) | (key == query))[:, None]


def as_boolean_mask(mask: Shaped[Tensor, "#B 1 T S"]) -> Bool[Tensor, "#B 1 T S"]:
    """Turn an additive mask of transformers (0, or the least number of its dtype) into booleans.

    Raises `ValueError` for numbers in between: no kernel here adds them.
    """
    if not mask.is_floating_point():
        return mask.bool()
    if bool(((mask != 0) & (mask > torch.finfo(mask.dtype).min / 2)).any()):
        raise ValueError(
            "attention_mask holds numbers to add to scores: only 0 and the least number of its "
            "dtype are known here"
        )
    return mask == 0


def attend_and_record(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    mask: Bool[Tensor, "#B 1 T S"] | None,
    intermediates: Intermediates,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """Compute `attend`, and record the weights (B, H, T, S) where the caller asked for them.

    No fused kernel gives its weights out, so with them attention is computed step by step.
    """
    if intermediates.attentions is None:
        return attend(q, k, v, mask, dropout)
    queries, keys = q.shape[2], k.shape[2]
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask.to(q.device), torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(v.dtype), dropout)
    intermediates.attentions.append(weights)
    return weights @ v


def attend(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    mask: Bool[Tensor, "#B 1 T S"] | None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """Compute softmax(q kᵀ / √K) v, causal where `mask` is None; G divides H.

    No key is ever repeated in memory: where the fused kernel would repeat it, the queries of a
    group become rows of one key head.
    """
    if dropout == 0 and mask is None and (blocks := attend_in_blocks(q, k, v)) is not None:
        return blocks
    if dropout == 0 and _prefers_unfused(q, k):
        return _attend_unfused(q, k, v, mask)
    mask = mask.to(q.device) if mask is not None else None
    grouped = k.shape[1] != q.shape[1]
    if grouped and (q.shape[2] == 1 or dropout or (mask is not None and q.device.type != "cpu")):
        return _attend_grouped(q, k, v, mask, dropout)
    causal = mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )


def _attend_grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attend with a group's queries as rows of their key head.

    For one token this is also faster (benchmarks/models/grouped.py).
    """
    queries, groups = q.shape[2], q.shape[1] // k.shape[1]
    if queries > 1:
        if mask is None:
            mask = torch.ones(queries, k.shape[2], dtype=torch.bool, device=q.device).tril()
            mask = mask[None, None]
        mask = mask.repeat(1, 1, groups, 1)
    rows = q.unflatten(1, (-1, groups)).flatten(2, 3)  # B G RT K, R queries a group
    x = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, dropout_p=dropout)
    return x.unflatten(2, (groups, queries)).flatten(1, 2)


def _prefers_unfused(q: Tensor, k: Tensor) -> bool:
    """Whether plain bfloat16 products are faster than the fused kernel.

    They are on a CPU, up to 512 tokens (benchmarks/models/attention.py).
    """
    return (
        q.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and q.shape[2] == k.shape[2] <= 512
    )


def _attend_unfused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend by two matrix products; a group's queries are rows over the keys that they share."""
    (batch, heads, steps, size), shared = q.shape, k.shape[1]
    groups = heads // shared
    hidden = torch.ones(1, 1, steps, steps, dtype=torch.bool).triu(1) if mask is None else ~mask
    bias = torch.zeros(hidden.shape, dtype=torch.bfloat16).masked_fill_(hidden, float("-inf"))
    bias = bias.repeat(1, 1, groups, 1)
    if len(bias) == 1:  # one mask for all rows of the batch
        bias = bias[0].expand(batch * shared, -1, -1)
    else:
        bias = bias.expand(-1, shared, -1, -1).flatten(0, 1)
    q, k, v = q.reshape(batch * shared, groups * steps, size), k.flatten(0, 1), v.flatten(0, 1)
    scores = torch.baddbmm(bias, q, k.mT, alpha=size**-0.5)
    return (scores.softmax(-1, dtype=scores.dtype) @ v).reshape(batch, heads, steps, size)
