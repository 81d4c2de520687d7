"""Induction heads: start a transformer with attention that copies.

Olsson et al. 2022 found in every trained transformer pairs of heads that continue a repetition. A
head of the first layer brings each token the one before it. A head of the second layer looks for a
token that came after one like the present, and copies it: what followed once may follow again. A
transformer finds them only after millions of tokens; here it has them from the first step, as
weights like all others that go on learning. (To start from weights shaped like trained ones:
Trockman & Kolter 2023.)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

PREVIOUS_TOKEN_SCORE = 30.0  # of the token before, above all others, before the softmax
FAST_FREQUENCY = 0.1  # radians a token from which on rotation tells neighbours apart
PREVIOUS_TOKEN_GAIN = 2.0  # size of the copy of the token before, where a token's own is 1
MATCH_GAIN = 3.0  # of the comparison of tokens, in queries and in keys


@dataclass(frozen=True)
class HeadWeights:
    """One attention head's weights, as views: what is added to them is added to the model's."""

    query: Float[Tensor, "K D"]
    key: Float[Tensor, "K D"]
    value: Float[Tensor, "K D"]
    output: Float[Tensor, "D K"]


def list_head_weights(layer: nn.Module) -> Iterator[HeadWeights]:
    """List each key-value head of a Llama layer, with the first query head that shares it."""
    attention: Any = layer.self_attn
    q, k, v, o = (getattr(attention, f"{name}_proj").weight for name in "qkvo")
    size, shared = q.shape[0] // attention.heads, attention.heads // attention.kv_heads
    for head in range(attention.kv_heads):
        queries = slice(head * shared * size, (head * shared + 1) * size)
        keys = slice(head * size, (head + 1) * size)
        yield HeadWeights(q[queries], k[keys], v[keys], o[:, queries])


@torch.no_grad()
def add_induction_circuit(
    first: HeadWeights,
    second: HeadWeights,
    common: Float[Tensor, " D"],
    frequencies: Float[Tensor, " half_K"],
    length: int,
) -> None:
    """Add the circuit to a head of the first layer and one of the second.

    All tokens begin from the vector `common`, which rotation turns by `frequencies`, radians a
    token. The fast pairs of channels tell neighbours apart. In the slow ones, which hardly turn
    over `length` tokens, tokens are compared wherever they stand.
    """
    fast = (frequencies > FAST_FREQUENCY).nonzero().flatten()
    slow = (frequencies.repeat(2) * length < 1).nonzero().flatten()
    add_previous_token_head(first, common / common.norm(), frequencies, fast)
    # The size of a channel of the residual stream at the start; normalised it is 1.
    start = common.square().mean().sqrt()
    basis = torch.randn(len(common), 2 * min(len(slow), (len(common) - 1) // 2)).to(common)
    # Without `common` itself, in which all tokens are alike.
    basis = torch.linalg.qr(torch.cat([common[:, None], basis], dim=1))[0].T[1:]
    # Directions of the token itself, and those where the copy of the one before is written.
    now, before = basis.to(first.value).chunk(2)
    slow = slow[: len(now)]
    first.value[slow] += now
    first.output[:, slow] += PREVIOUS_TOKEN_GAIN * start * before.T
    second.query[slow] += MATCH_GAIN * now
    second.key[slow] += MATCH_GAIN * before
    second.value[slow] += now
    second.output[:, slow] += start * now.T


def add_previous_token_head(
    head: HeadWeights, common: Tensor, frequencies: Tensor, fast: Tensor
) -> None:
    """Turn each key forward by one token, so that a query matches the key of the token before."""
    size = len(frequencies)
    scale = PREVIOUS_TOKEN_SCORE * math.sqrt(2 * size) / max(1, len(fast)) / len(common)
    common = common * math.sqrt(scale)
    head.query[fast] += common
    head.key[fast] += torch.outer(frequencies[fast].cos(), common)
    head.key[fast + size] += torch.outer(frequencies[fast].sin(), common)
