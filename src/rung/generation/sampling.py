"""Choose the next token: greedily, or sampled with temperature, top-k and top-p.

The distribution is Hugging Face's: temperature first, then top-k, then top-p (Holtzman et al.
2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from rung.errors import RecipeError
from rung.models.base import check_finite

# Lower temperatures are greedy: the logits divided by them would overflow.
MIN_TEMPERATURE = 1e-3
# With a lower top_p the most probable token is enough, of any vocabulary smaller than 2**24.
MIN_TOP_P = 2**-24
# Draws of one token from the whole vocabulary before it is sorted.
MAX_REDRAWS = 32


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose the next token, and when to stop. Temperature 0 is greedy decoding."""

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0  # 0: no limit
    top_p: float = 0.95  # 0, or next to it, is greedy decoding too
    num_beams: int = 1
    stop: tuple[str, ...] = ()  # texts that end the continuation; they are left out
    seed: int = 0
    max_time: float | None = None  # seconds after which it ends (not with beams)

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < MIN_TEMPERATURE or self.top_p < MIN_TOP_P

    def __post_init__(self) -> None:
        bounds = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 <= self.top_p <= 1,
            "num_beams": self.num_beams >= 1,
            # The seeds that torch takes.
            "seed": isinstance(self.seed, int) and -(2**63) <= self.seed < 2**64,
        }
        special = {"temperature": "0 or more", "top_k": "0 or more", "top_p": "in [0, 1]"}
        special["seed"] = f"a whole number from {-(2**63)} to {2**64 - 1}"
        for name, holds in bounds.items():
            if not holds:
                raise RecipeError(
                    f"{name} is {getattr(self, name)}: it must be {special.get(name, '1 or more')}"
                )
        if "" in self.stop:
            raise RecipeError(
                "stop is an empty text: it would end before the first token; leave it out"
            )


def sample_tokens(
    logits: Float[Tensor, "B V"], sampling: Sampling, generator: torch.Generator
) -> Int[Tensor, " B"]:
    """Choose the next token of each row, on the device that the logits are on."""
    check_finite(logits)
    if sampling.is_greedy:
        return logits.argmax(-1)
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    if _draws_from_all(probabilities, sampling):
        return _draw_nucleus(probabilities, sampling.top_p, generator)
    kept, tokens = _filter_top(probabilities, sampling.top_k, sampling.top_p)
    return tokens.gather(-1, _draw(kept, generator)[:, None])[:, 0]


def find_probabilities(logits: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """Compute the distribution that `sample_tokens` draws from."""
    check_finite(logits)
    if sampling.is_greedy:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    if not _draws_from_all(probabilities, sampling):
        kept, tokens = _filter_top(probabilities, sampling.top_k, sampling.top_p)
        probabilities = torch.zeros_like(probabilities).scatter(-1, tokens, kept)
    elif sampling.top_p < 1:
        probabilities = probabilities.where(_sum_above(probabilities) < sampling.top_p, 0.0)
    return probabilities / probabilities.sum(-1, keepdim=True)


def _draws_from_all(probabilities: Float[Tensor, "B V"], sampling: Sampling) -> bool:
    return not 0 < sampling.top_k < probabilities.shape[-1] and (
        sampling.top_p == 1 or probabilities.device.type == "cpu"
    )


def _filter_top(
    probabilities: Float[Tensor, "B V"], top_k: int, top_p: float | Float[Tensor, "B 1"]
) -> tuple[Float[Tensor, "B k"], Int[Tensor, "B k"]]:
    """Return the top-k probabilities, 0 where top-p leaves them out, and their tokens."""
    size = probabilities.shape[-1]
    top, tokens = probabilities.topk(min(top_k or size, size))
    top = top / top.sum(-1, keepdim=True)
    above = top.cumsum(-1) - top  # the probability of all more probable tokens
    return top.masked_fill(above >= top_p, 0.0), tokens


def _sum_above(probabilities: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """Sum, for each token, the probabilities of all more probable ones; equal ones do not count."""
    ascending = probabilities.sort(-1).values
    sums = ascending.double().cumsum(-1)
    place = torch.searchsorted(ascending, probabilities, right=True)  # how many are no greater
    return (sums[:, -1:] - sums.gather(-1, place - 1)).to(probabilities)


def _draw_nucleus(
    probabilities: Float[Tensor, "B V"], top_p: float, generator: torch.Generator
) -> Int[Tensor, " B"]:
    """Draw from the whole vocabulary, again until the token is within top-p.

    A token is within top-p if the more probable ones sum to less. Sorting them would take longer.
    """
    tokens = _draw(probabilities, generator)
    while top_p < 1:
        drawn = probabilities.gather(-1, tokens[:, None])
        outside = torch.where(probabilities > drawn, probabilities, 0.0).sum(-1) >= top_p
        if not outside.any():
            break
        tokens = torch.where(outside, _draw(probabilities, generator), tokens)
    return tokens


def _draw(weights: Float[Tensor, "B V"], generator: torch.Generator) -> Int[Tensor, " B"]:
    """Draw one column of each row, by its weight."""
    sums = weights.double().cumsum(-1)
    uniform = torch.rand(len(weights), 1, dtype=sums.dtype, device=sums.device, generator=generator)
    drawn = uniform * sums[:, -1:]
    return torch.searchsorted(sums, drawn, right=True)[:, 0].clamp(max=weights.shape[-1] - 1)


class RandomStream:
    """The uniform random numbers in [0, 1) of one text, in the order that its seed gives them.

    They are made in blocks: one by one would take many times as long.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.block: list[float] = []

    def draw(self) -> float:
        """Take the next number."""
        if not self.block:
            self.block = torch.rand(64, dtype=torch.double, generator=self.generator).tolist()[::-1]
        return self.block.pop()


def sample_each(
    logits: Float[Tensor, "B V"], settings: Sequence[Sampling], streams: Sequence[RandomStream]
) -> list[int]:
    """Choose the next token of each row by its own settings and random numbers.

    On a CPU each row gets the token that `sample_tokens` gives it alone. Rows with the same top-k,
    and top-p or none, are sampled together, whatever their temperatures.
    """
    groups: dict[tuple[int, bool] | None, list[int]] = {}
    for row, sampling in enumerate(settings):
        kind = None if sampling.is_greedy else (sampling.top_k, sampling.top_p == 1)
        groups.setdefault(kind, []).append(row)
    tokens = [0] * len(settings)
    check_finite(logits)
    for kind, rows in groups.items():
        mine = logits if len(rows) == len(settings) else logits[rows]
        if kind is None:
            chosen = mine.argmax(-1).tolist()
        elif len(rows) == 1 and not 0 < kind[0] < logits.shape[-1]:
            chosen = [_draw_alone(mine, settings[rows[0]], streams[rows[0]])]
        else:
            columns = [(settings[row].temperature, settings[row].top_p) for row in rows]
            temperature, top_p = torch.tensor(columns, device=mine.device).split(1, dim=1)
            probabilities = (mine.float() / temperature).softmax(-1)
            chosen = _draw_each(probabilities, *kind, top_p, [streams[row] for row in rows])
        for row, token in zip(rows, chosen, strict=True):
            tokens[row] = token
    return tokens


def _draw_alone(logits: Float[Tensor, "1 V"], sampling: Sampling, stream: RandomStream) -> int:
    """Draw as `_draw_each` does, by half as many operations: for one row they take the time."""
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    sums = probabilities[0].double().cumsum(-1)
    total, last, top_p = sums[-1].item(), len(sums) - 1, torch.tensor([[sampling.top_p]])
    most = top_p.item()  # rounded as the probabilities are
    for _ in range(MAX_REDRAWS + 1):
        token = min(int(torch.searchsorted(sums, stream.draw() * total, right=True)), last)
        drawn = probabilities[0, token].item()
        if sampling.top_p == 1 or drawn > 1 - most:
            return token
        above = torch.where(probabilities > drawn, probabilities, 0.0).sum(-1)
        if above.item() < most:
            return token
    return _draw_top(probabilities, last + 1, top_p, [stream])[0]


def _draw_each(
    probabilities: Float[Tensor, "B V"],
    top_k: int,
    without_top_p: bool,
    top_p: Float[Tensor, "B 1"],
    streams: list[RandomStream],
) -> list[int]:
    """Draw as `sample_tokens` does, but sort the row of a token that was redrawn too often."""
    size = probabilities.shape[-1]
    if 0 < top_k < size:
        return _draw_top(probabilities, top_k, top_p, streams)
    sums = probabilities.double().cumsum(-1)
    tokens = _find_columns(sums, streams)
    rows = [] if without_top_p else list(range(len(streams)))
    for _ in range(MAX_REDRAWS):
        rows = _find_outside(probabilities, tokens, top_p, rows)
        if not rows:
            return tokens
        redrawn = _find_columns(sums[rows], [streams[row] for row in rows])
        for row, token in zip(rows, redrawn, strict=True):
            tokens[row] = token
    for row in _find_outside(probabilities, tokens, top_p, rows):
        alone = probabilities[row, None], size, top_p[row, None], [streams[row]]
        tokens[row] = _draw_top(*alone)[0]
    return tokens


def _find_outside(
    probabilities: Float[Tensor, "B V"],
    tokens: list[int],
    top_p: Float[Tensor, "B 1"],
    rows: list[int],
) -> list[int]:
    """Find which of `rows` have a token outside top-p."""
    columns = torch.tensor([[token] for token in tokens], device=probabilities.device)
    drawn = probabilities.gather(-1, columns)
    # Where a token's probability is above 1 - top_p, all others together are below top_p.
    inside = (drawn > 1 - top_p)[:, 0].tolist()
    rows = [row for row in rows if not inside[row]]
    if not rows:
        return []
    mine, drawn, top_p = (
        part if len(rows) == len(probabilities) else part[rows]
        for part in (probabilities, drawn, top_p)
    )
    outside = torch.where(mine > drawn, mine, 0.0).sum(-1, keepdim=True) >= top_p
    return [row for row, (is_outside,) in zip(rows, outside.tolist(), strict=True) if is_outside]


def _draw_top(
    probabilities: Float[Tensor, "B V"],
    top_k: int,
    top_p: Float[Tensor, "B 1"],
    streams: list[RandomStream],
) -> list[int]:
    kept, tokens = _filter_top(probabilities, top_k, top_p)
    columns = _find_columns(kept.double().cumsum(-1), streams)
    return tokens.gather(-1, torch.tensor(columns, device=tokens.device)[:, None])[:, 0].tolist()


def _find_columns(sums: Float[Tensor, "B V"], streams: list[RandomStream]) -> list[int]:
    """Draw one column of each row, by what it adds to the row's running sum."""
    uniform = torch.tensor(
        [[stream.draw()] for stream in streams], dtype=sums.dtype, device=sums.device
    )
    drawn = uniform * sums[:, -1:]
    return torch.searchsorted(sums, drawn, right=True)[:, 0].clamp(max=sums.shape[-1] - 1).tolist()
