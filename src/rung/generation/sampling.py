"""How the next token is chosen: the likeliest, or drawn from what temperature, top-k and top-p
leave.

The same distribution as Hugging Face's: temperature first, then top-k, then top-p (Holtzman et al.
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

NEARLY_GREEDY = 1e-3  # temperatures below it take the likeliest: their numbers would not hold
LEAST_TOP_P = (
    2**-24
)  # below it the likeliest token is enough, of any vocabulary that is smaller than 2**24
PATIENCE = 32  # draws of one token from all before the likely ones are sorted out


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to stop; temperature 0 always takes the likeliest."""

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0  # 0: no limit
    top_p: float = 0.95  # 0, or next to it: the likeliest, as temperature 0
    num_beams: int = 1
    stop: tuple[str, ...] = ()  # texts that end it; they are left out
    seed: int = 0
    max_time: float | None = None  # seconds after which it ends (not with beams)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < NEARLY_GREEDY or self.top_p < LEAST_TOP_P

    def __post_init__(self) -> None:
        bounds = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 <= self.top_p <= 1,
            "num_beams": self.num_beams >= 1,
            "seed": isinstance(self.seed, int)
            and -(2**63) <= self.seed < 2**64,  # what torch takes
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


def choose(
    logits: Float[Tensor, "B V"], sampling: Sampling, generator: torch.Generator
) -> Int[Tensor, " B"]:
    """The next token of each row, chosen on the device that the logits are on."""
    check_finite(logits)
    if sampling.is_greedy:
        return logits.argmax(-1)
    shares = (logits.float() / sampling.temperature).softmax(-1)
    if _draws_from_all(shares, sampling):
        return _draw_within(shares, sampling.top_p, generator)
    likely, tokens = _find_likely(shares, sampling.top_k, sampling.top_p)
    return tokens.gather(-1, _draw(likely, generator)[:, None])[:, 0]


def find_shares(logits: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """The probabilities that `choose` draws from."""
    check_finite(logits)
    if sampling.is_greedy:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    shares = (logits.float() / sampling.temperature).softmax(-1)
    if not _draws_from_all(shares, sampling):
        likely, tokens = _find_likely(shares, sampling.top_k, sampling.top_p)
        shares = torch.zeros_like(shares).scatter(-1, tokens, likely)
    elif sampling.top_p < 1:
        shares = shares.where(_sum_above(shares) < sampling.top_p, 0.0)
    return shares / shares.sum(-1, keepdim=True)


def _draws_from_all(shares: Float[Tensor, "B V"], sampling: Sampling) -> bool:
    return not 0 < sampling.top_k < shares.shape[-1] and (
        sampling.top_p == 1 or shares.device.type == "cpu"
    )


def _find_likely(
    shares: Float[Tensor, "B V"], top_k: int, top_p: float | Float[Tensor, "B 1"]
) -> tuple[Float[Tensor, "B k"], Int[Tensor, "B k"]]:
    """The likeliest by top-k, at 0 where top-p leaves them out, and which tokens they are."""
    likely, tokens = shares.topk(min(top_k or shares.shape[-1], shares.shape[-1]))
    likely = likely / likely.sum(-1, keepdim=True)
    before = likely.cumsum(-1) - likely  # the probability of all that are likelier
    return likely.masked_fill(before >= top_p, 0.0), tokens


def _sum_above(shares: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """Of each token the probability of all that are likelier: equals count neither for nor against
    each other.
    """
    ascending = shares.sort(-1).values
    sums = ascending.double().cumsum(-1)
    place = torch.searchsorted(ascending, shares, right=True)  # how many are no likelier
    return (sums[:, -1:] - sums.gather(-1, place - 1)).to(shares)


def _draw_within(
    shares: Float[Tensor, "B V"], top_p: float, generator: torch.Generator
) -> Int[Tensor, " B"]:
    """Draw from all, again until the likelier ones make up less than `top_p`: sorting them would
    take longer.
    """
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
    drawn = (
        torch.rand(len(shares), 1, dtype=ends.dtype, device=ends.device, generator=generator)
        * ends[:, -1:]
    )
    return torch.searchsorted(ends, drawn, right=True)[:, 0].clamp(max=shares.shape[-1] - 1)


class Draws:
    """A text's own random numbers, from 0 to 1: those that its seed gives one after another, made
    many at a time.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.ready: list[float] = []

    def take(self) -> float:
        """The next one."""
        if not self.ready:
            self.ready = torch.rand(64, dtype=torch.double, generator=self.generator).tolist()[::-1]
        return self.ready.pop()


def choose_each(
    logits: Float[Tensor, "B V"], settings: Sequence[Sampling], draws: Sequence[Draws]
) -> list[int]:
    """The next token of each row, by its own settings and random numbers: on a CPU those that
    `choose` gives it alone.

    Rows that are sifted alike are chosen together, whatever their temperatures.
    """
    alike: dict[tuple[int, bool] | None, list[int]] = {}
    for row, sampling in enumerate(settings):
        kind = None if sampling.is_greedy else (sampling.top_k, sampling.top_p == 1)
        alike.setdefault(kind, []).append(row)
    tokens = [0] * len(settings)
    check_finite(logits)
    for kind, rows in alike.items():
        mine = logits if len(rows) == len(settings) else logits[rows]
        if kind is None:
            chosen = mine.argmax(-1).tolist()
        else:
            columns = [(settings[row].temperature, settings[row].top_p) for row in rows]
            temperature, top_p = torch.tensor(columns, device=mine.device).split(1, dim=1)
            shares = (mine.float() / temperature).softmax(-1)
            chosen = _draw_each(shares, *kind, top_p, [draws[row] for row in rows])
        for row, token in zip(rows, chosen, strict=True):
            tokens[row] = token
    return tokens


def _draw_each(
    shares: Float[Tensor, "B V"],
    top_k: int,
    is_whole: bool,
    top_p: Float[Tensor, "B 1"],
    draws: list[Draws],
) -> list[int]:
    """As `choose` does; but where much is too unlikely, drawing again is given up, and the likely
    ones sorted out.
    """
    size = shares.shape[-1]
    if 0 < top_k < size:
        return _draw_likely(shares, top_k, top_p, draws)
    ends = shares.double().cumsum(-1)
    tokens = _find_places(ends, draws)
    rows = [] if is_whole else list(range(len(draws)))
    for _ in range(PATIENCE):
        rows = _too_unlikely(shares, tokens, top_p, rows)
        if not rows:
            return tokens
        for row, token in zip(
            rows, _find_places(ends[rows], [draws[row] for row in rows]), strict=True
        ):
            tokens[row] = token
    for row in _too_unlikely(shares, tokens, top_p, rows):
        tokens[row] = _draw_likely(shares[row, None], size, top_p[row, None], [draws[row]])[0]
    return tokens


def _too_unlikely(
    shares: Float[Tensor, "B V"], tokens: list[int], top_p: Float[Tensor, "B 1"], rows: list[int]
) -> list[int]:
    """Which of `rows` have a token below those that make up `top_p`."""
    picked = shares.gather(-1, torch.tensor([[token] for token in tokens], device=shares.device))
    inside = (picked > 1 - top_p)[:, 0].tolist()  # all others together are less than that
    rows = [row for row in rows if not inside[row]]
    if not rows:
        return []
    mine, picked, top_p = (
        part if len(rows) == len(shares) else part[rows] for part in (shares, picked, top_p)
    )
    outside = torch.where(mine > picked, mine, 0.0).sum(-1, keepdim=True) >= top_p
    return [row for row, (is_outside,) in zip(rows, outside.tolist(), strict=True) if is_outside]


def _draw_likely(
    shares: Float[Tensor, "B V"], top_k: int, top_p: Float[Tensor, "B 1"], draws: list[Draws]
) -> list[int]:
    likely, tokens = _find_likely(shares, top_k, top_p)
    places = _find_places(likely.double().cumsum(-1), draws)
    return tokens.gather(-1, torch.tensor(places, device=tokens.device)[:, None])[:, 0].tolist()


def _find_places(ends: Float[Tensor, "B V"], draws: list[Draws]) -> list[int]:
    """One place of each row, by what it adds to the sum."""
    drawn = (
        torch.tensor([[own.take()] for own in draws], dtype=ends.dtype, device=ends.device)
        * ends[:, -1:]
    )
    return torch.searchsorted(ends, drawn, right=True)[:, 0].clamp(max=ends.shape[-1] - 1).tolist()
