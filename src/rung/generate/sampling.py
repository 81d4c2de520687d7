"""How the next token is chosen: the likeliest, or drawn from what temperature, top-k and top-p leave.

The same distribution as Hugging Face's: temperature first, then top-k, then top-p (Holtzman et al. 2020).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rung.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to stop; temperature 0 always takes the likeliest."""

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0  # 0: no limit
    top_p: float = 0.95
    num_beams: int = 1
    stop: tuple[str, ...] = ()  # texts that end it; they are left out
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "num_beams": self.num_beams >= 1,
        }
        for name, holds in bounds.items():
            if not holds:
                wanted = {"temperature": "0 or more", "top_k": "0 or more", "top_p": "in (0, 1]"}.get(name, "1 or more")
                raise RecipeError(f"{name} is {getattr(self, name)}: it must be {wanted}")
        if "" in self.stop:
            raise RecipeError("stop is an empty text: it would end before the first token; leave it out")


def choose(logits: Float[Tensor, "B V"], sampling: Sampling, generator: torch.Generator) -> Int[Tensor, " B"]:
    """The next token of each row, chosen on the device that the logits are on."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    shares = (logits.float() / sampling.temperature).softmax(-1)
    size = shares.shape[-1]
    kept = min(sampling.top_k or size, size)
    if kept == size and (sampling.top_p == 1 or shares.device.type == "cpu"):
        return _draw_within(shares, sampling.top_p, generator)
    likely, tokens = shares.topk(kept)
    likely = likely / likely.sum(-1, keepdim=True)
    before = likely.cumsum(-1) - likely  # the probability of all that are likelier
    place = _draw(likely.masked_fill(before >= sampling.top_p, 0.0), generator)
    return tokens.gather(-1, place[:, None])[:, 0]


def _draw_within(shares: Float[Tensor, "B V"], top_p: float, generator: torch.Generator) -> Int[Tensor, " B"]:
    """Draw from all, again until the likelier ones make up less than `top_p`: sorting them would take longer."""
    tokens = _draw(shares, generator)
    while top_p < 1:
        share = shares.gather(-1, tokens[:, None])
        outside = torch.where(shares > share, shares, 0.0).sum(-1) >= top_p
        if not outside.any():
            break
        tokens = torch.where(outside, _draw(shares, generator), tokens)
    return tokens


def _draw(shares: Float[Tensor, "B V"], generator: torch.Generator) -> Int[Tensor, " B"]:
    """One place of each row, by its share of the row's sum."""
    ends = shares.double().cumsum(-1)
    drawn = torch.rand(len(shares), 1, dtype=ends.dtype, device=ends.device, generator=generator) * ends[:, -1:]
    return torch.searchsorted(ends, drawn, right=True)[:, 0].clamp(max=shares.shape[-1] - 1)
