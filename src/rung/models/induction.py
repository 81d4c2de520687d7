"""Pairs of heads that copy, from the first step: what a transformer else finds only after millions
of tokens.

A head of the first layer brings each token the one before it. A head of the second looks for a
token that came after one like the present, and brings it: what followed once may follow again.
Olsson et al. 2022 found these induction heads in every trained transformer; to begin from weights
like trained ones is Trockman & Kolter 2023. They are weights like all others, and go on learning.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PREVIOUS_TOKEN_SCORE = 30.0  # how far the score of the token before stands out, before the softmax
FAST_FREQUENCY = 0.1  # radians a token: from here on, turning tells neighbours apart
PREVIOUS_TOKEN_GAIN = 2.0  # times as large as a token begins, what is brought of the one before
MATCH_GAIN = 3.0  # of what is compared, in queries and keys


@dataclass(frozen=True)
class HeadWeights:
    """One attention head's weights, as views: what is added to them is added to the model's."""

    query: Float[Tensor, "K D"]
    key: Float[Tensor, "K D"]
    value: Float[Tensor, "K D"]
    output: Float[Tensor, "D K"]


@torch.no_grad()
def add_induction_circuit(
    first: HeadWeights,
    second: HeadWeights,
    common: Float[Tensor, " D"],
    frequencies: Float[Tensor, " half_K"],
    length: int,
) -> None:
    """Add the circuit to a head of the first layer and one of the second, for texts of so many
    tokens.

    All tokens begin from the vector `common`, which rotation turns by `frequencies`, radians a
    token: by the fast pairs of channels neighbours are told apart, and in the slow ones tokens are
    compared wherever they stand.
    """
    fast = (frequencies > FAST_FREQUENCY).nonzero().flatten()
    slow = (frequencies.repeat(2) * length < 1).nonzero().flatten()
    _add_previous_token_head(first, common / common.norm(), frequencies, fast)
    start = common.square().mean().sqrt()  # the size of a channel of the stream; normalised it is 1
    basis = torch.randn(len(common), 2 * min(len(slow), (len(common) - 1) // 2)).to(common)
    basis = torch.linalg.qr(torch.cat([common[:, None], basis], dim=1))[0].T[
        1:
    ]  # no token is like another in `common`
    now, before = basis.to(first.value).chunk(
        2
    )  # where a token is, and where the one before it comes to be
    slow = slow[: len(now)]
    first.value[slow] += now
    first.output[:, slow] += PREVIOUS_TOKEN_GAIN * start * before.T
    second.query[slow] += MATCH_GAIN * now
    second.key[slow] += MATCH_GAIN * before
    second.value[slow] += now
    second.output[:, slow] += start * now.T


def _add_previous_token_head(
    head: HeadWeights, common: Tensor, frequencies: Tensor, fast: Tensor
) -> None:
    """Keys stand where queries would stand a token later."""
    size = len(frequencies)
    common = common * math.sqrt(
        PREVIOUS_TOKEN_SCORE * math.sqrt(2 * size) / max(1, len(fast)) / len(common)
    )
    head.query[fast] += common
    head.key[fast] += torch.outer(frequencies[fast].cos(), common)
    head.key[fast + size] += torch.outer(frequencies[fast].sin(), common)
