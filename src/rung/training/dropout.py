"""Dropout, in training and nowhere else.

Models that have none of their own, such as Llama, get it where GPT-2 has it (Srivastava et al.
2014; Radford et al. 2019): on embeddings and on everything that is added to the residual stream.
What is hooked on is taken off again, so a saved model and its configuration know nothing of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rung.models.base import CausalModel
from rung.models.initialization import RESIDUAL_PROJECTIONS

BITS = 16  # of a random number, for each channel
DRAW = 64  # bits that are drawn at once


def drop(x: Tensor, probability: float) -> Tensor:
    """Return x with zeros in place of numbers that are drawn, the others divided by what is left.

    `F.dropout` draws a random number for each number of x, which on a CPU takes longer than all
    else that a layer does between its products. Here one draw is cut up for four of them.
    """
    if x.device.type != "cpu" or probability == 1:
        return F.dropout(x, probability)
    draws = torch.empty(-(-x.numel() * BITS // DRAW), dtype=torch.int64).random_(-(2**63), None)
    numbers = draws.view(torch.int16)[: x.numel()].view(x.shape)
    below = min(round(probability * 2**BITS), 2**BITS - 1) - 2 ** (BITS - 1)
    is_kept = numbers >= below
    return x * (is_kept.to(x.dtype) / (1 - probability))


@contextmanager
def apply_dropout(model: CausalModel, probability: float) -> Iterator[None]:
    """Let the model drop channels with this probability while it trains inside the context.

    On a CPU its own `nn.Dropout` are made faster there.
    """

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return drop(output, probability) if module.training else output

    def forward(module: nn.Dropout, x: Tensor) -> Tensor:
        return drop(x, module.p) if module.training and module.p else x

    is_on_cpu = next(model.parameters()).device.type == "cpu"
    own = [part for part in model.modules() if is_on_cpu and isinstance(part, nn.Dropout)]
    dropped = [
        part
        for name, part in model.named_modules()
        if isinstance(part, nn.Embedding) or name.endswith(RESIDUAL_PROJECTIONS)
    ]
    handles = [part.register_forward_hook(hook) for part in dropped] if probability else []
    for part in own:
        part.forward = partial(forward, part)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for part in own:
            del part.forward
