"""Weights in fewer bits: what is read is less, and what that costs is measured."""

import copy
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from rung.data.tokenizer import encode_ordinary
from rung.errors import RecipeError
from rung.models.base import CausalModel

ROUNDED = {"bfloat16": torch.bfloat16, "int8": torch.int8}
LARGEST_INT8 = 127


def find_rounding(name: str) -> torch.dtype | None:
    """The type that weights are rounded to; None for weights as they are.

    Raises `RecipeError` for another name.
    """
    if not name:
        return None
    if name not in ROUNDED:
        raise RecipeError(f"unknown weights {name!r}: choose from {', '.join(ROUNDED)}")
    return ROUNDED[name]


def round_to_int8(weight: Float[Tensor, "N D"]) -> tuple[Int[Tensor, "N D"], Float[Tensor, " N"]]:
    """The weights as whole numbers up to 127, and what one of them is worth in each row."""
    scale = (weight.float().abs().amax(dim=1) / LARGEST_INT8).clamp(min=1e-12)
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


@torch.inference_mode()
def rounding_cost(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, text: str, weights: torch.dtype
) -> float:
    """Bits per byte that `text` costs more with rounded weights; negative where it costs less."""
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(_round(module.weight, weights), requires_grad=False)
        elif isinstance(module, Conv1D):
            module.weight = nn.Parameter(_round(module.weight.T, weights).T, requires_grad=False)
    ids = [tokenizer.bos_token_id, *encode_ordinary(tokenizer, [text])[0].ids][
        : model.context_length
    ]
    row = torch.tensor([ids], device=model.device)
    nats = [
        F.cross_entropy(m(row[:, :-1]).logits[0].float(), row[0, 1:], reduction="sum").item()
        for m in (model, rounded)
    ]
    return (nats[1] - nats[0]) / math.log(2) / max(1, len(tokenizer.decode(ids[1:]).encode()))


def _round(weight: Tensor, to: torch.dtype) -> Tensor:
    if to != torch.int8:
        return weight.to(to).to(weight.dtype)
    whole, scale = round_to_int8(weight)
    return (whole * scale[:, None]).to(weight.dtype)
