"""Quantize weights to fewer bits, and measure what that costs."""

import copy
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from rung.data.tokenizer import encode_after_bos
from rung.errors import RecipeError
from rung.models.base import CausalModel

WEIGHT_DTYPES = {"bfloat16": torch.bfloat16, "int8": torch.int8}
INT8_MAX = 127


def parse_weight_dtype(name: str) -> torch.dtype | None:
    """Look up the type that weights are quantized to; None, for an empty name, leaves them alone.

    Raises `RecipeError` for an unknown name.
    """
    if not name:
        return None
    if name not in WEIGHT_DTYPES:
        raise RecipeError(f"unknown weights {name!r}: choose from {', '.join(WEIGHT_DTYPES)}")
    return WEIGHT_DTYPES[name]


def quantize_int8(weight: Float[Tensor, "N D"]) -> tuple[Int[Tensor, "N D"], Float[Tensor, " N"]]:
    """Quantize weights to int8 and return them with the scale of each row."""
    scale = (weight.float().abs().amax(dim=1) / INT8_MAX).clamp(min=1e-12)
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


@torch.inference_mode()
def measure_quantization_cost(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, text: str, weights: torch.dtype
) -> float:
    """Measure how many bits per byte quantized weights add on `text`; negative if they save some.

    The text is cut to one context window.
    """
    quantized = copy.deepcopy(model)
    for module in quantized.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(_round_trip(module.weight, weights), requires_grad=False)
        elif isinstance(module, Conv1D):
            weight = _round_trip(module.weight.T, weights).T
            module.weight = nn.Parameter(weight, requires_grad=False)
    ids = encode_after_bos(tokenizer, text)
    ids = ids[: model.context_length]
    row = torch.tensor([ids], device=model.device)
    nats = [
        F.cross_entropy(m(row[:, :-1]).logits[0].float(), row[0, 1:], reduction="sum").item()
        for m in (model, quantized)
    ]
    return (nats[1] - nats[0]) / math.log(2) / max(1, len(tokenizer.decode(ids[1:]).encode()))


def _round_trip(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Quantize and dequantize, in the weight's own type."""
    if dtype != torch.int8:
        return weight.to(dtype).to(weight.dtype)
    quantized, scale = quantize_int8(weight)
    return (quantized * scale[:, None]).to(weight.dtype)
