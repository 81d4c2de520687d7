"""Beside rung 2: n-grams of any length.

Below:   the n-grams of a fixed order are listed, and a history beyond it is cut.
New:     nothing is listed: in the text's sorted suffixes any context is looked up, as far back
         as it occurs.
Missing: the same as an n-gram of fixed order; and shorter contexts count occurrences, where
         Kneser-Ney does better.
"""

from typing import Any, NamedTuple

import numpy
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from rung.errors import RecipeError
from rung.models.base import CountingModel, RecurrentState, non_padding_mask, select_positions
from rung.models.config_checks import RungConfig
from rung.models.forward_options import accept_forward_options
from rung.models.lookup import expand_ranges
from rung.models.ngram.smoothing import list_excluded_tokens
from rung.models.ngram.suffix_array import SuffixArray, estimate_length_discounts, sort_suffixes


class InfinigramConfig(RungConfig):
    """`smoothing` is `absolute`, which interpolates all lengths, or `none`: the longest alone."""

    model_type = "rung-infinigram"

    vocab_size: int = 1
    smoothing: str = "absolute"
    num_tokens: int = 0
    num_suffixes: int = 0
    longest_repeat: int = 0  # tokens
    discounts: list[float] | None = None  # by context length; the last serves longer ones
    num_hidden_layers: int = 1
    use_cache: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **options: Any) -> None:
        if self.smoothing not in ("absolute", "none"):
            raise RecipeError(
                f"smoothing is {self.smoothing!r}: n-grams of any length have absolute or none"
            )
        super().__post_init__(**options)


class Continuations(NamedTuple):
    """The tokens that came after the longest end of a context that occurs, with their counts.

    `length` is how many tokens of the context occurred.
    """

    length: int
    tokens: Int[Tensor, " kinds"]
    counts: Int[Tensor, " kinds"]


class InfinigramForCausalLM(CountingModel):
    """Probabilities from the longest context that the text holds.

    P(w | h) = (c(hw) - D) / c(h) + D n(h) / c(h) P(w | h'), where h is any context, h' the same
    without its first token and n(h) the number of different tokens after h (Ney et al. 1994). D is
    estimated for each length. Without smoothing it is 0, which leaves c(hw) / c(h) of the longest
    context that occurs (Liu et al. 2024, section 2). On a CPU the weights file is mapped into
    memory, not read.
    """

    config_class = InfinigramConfig

    def __init__(self, config: InfinigramConfig) -> None:
        super().__init__(config)
        self.text = SuffixArray(
            vocab_size=config.vocab_size,
            num_tokens=config.num_tokens,
            num_suffixes=config.num_suffixes,
            longest_repeat=config.longest_repeat,
        )
        # P of each token.
        self.unigrams = nn.Parameter(torch.zeros(config.vocab_size), requires_grad=False)
        self.post_init()

    @classmethod
    def fit(
        cls, config: InfinigramConfig, tokens: numpy.ndarray, starts: numpy.ndarray
    ) -> "InfinigramForCausalLM":
        """Sort the suffixes of `tokens` (N,), whose documents begin at `starts`, with BOS."""
        suffixes = sort_suffixes(
            tokens, starts, drop_ends=config.bos_token_id == config.eos_token_id
        )
        counts = numpy.bincount(tokens, minlength=config.vocab_size)
        counts[tokens[0]] -= len(starts)  # what opens a document is not predicted
        config.discounts = (
            estimate_length_discounts(counts, suffixes) if config.smoothing == "absolute" else [0.0]
        )
        config.num_tokens, config.num_suffixes = len(tokens), len(suffixes.places)
        config.longest_repeat = int(suffixes.shared.max())
        model = cls(config)
        model.text.fill(tokens, suffixes)
        excluded = list_excluded_tokens(config, int(tokens[0]))
        spread = config.discounts[0] * (counts > 0).sum() / (config.vocab_size - len(excluded))
        probability = (numpy.maximum(counts - config.discounts[0], 0) + spread) / counts.sum()
        probability[list(excluded)] = 0
        model.unigrams.copy_(torch.from_numpy(probability))
        return model

    @accept_forward_options
    @torch.no_grad()
    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Shaped[Tensor, "B S"] | None = None,
        past_key_values: RecurrentState | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Return log-probabilities (B, T, V) of the token after each of `input_ids` (B, T)."""
        batch, time = input_ids.shape
        real = non_padding_mask(input_ids, attention_mask)
        none = input_ids.new_zeros((batch, 0))
        low, high = past_key_values.tensors if past_key_values else (none, none)
        kept = set(select_positions(torch.arange(time)[None], logits_to_keep)[0].tolist())
        logits = []
        goes_on = (input_ids != self.config.eos_token_id) | (input_ids == self.config.bos_token_id)
        real = real & goes_on  # nothing follows the end of a document
        for t in range(time):
            low, high = self._step(low, high, input_ids[:, t], real[:, t])
            if t in kept:
                logits.append(self._distribution(low, high))
        state = RecurrentState(
            (low, high), time + (past_key_values.length if past_key_values else 0)
        )
        return self.make_output(torch.stack(logits, dim=1), labels, state, options)

    @torch.no_grad()
    def score_tokens(
        self, input_ids: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
        cost = self.unigrams[input_ids].double()
        order = torch.ones_like(input_ids)
        constant = len(self._discounts) - 1  # the length from which on the discount is the same
        at = torch.arange(len(input_ids) - 1, device=input_ids.device)  # the end of each context
        low, high = self.text.begin(input_ids[at])
        done = torch.zeros_like(input_ids, dtype=torch.bool)
        length, longest = 0, None
        while True:
            length += 1
            going = (high > low) & ~done[at]
            at, low, high = at[going], low[going], high[going]
            if len(at) == 0:
                return cost.log10().float(), order
            child_low, child_high = self.text.extend(low, high, length, input_ids[at + 1])
            seen = child_high - child_low
            share, weight = self._shares(low, high, length, seen)
            cost[at + 1] = share + weight * cost[at + 1]
            order[at[seen > 0] + 1] = length + 1
            if length >= constant and bool((single := high - low == 1).any()):
                longest = self.longest_match(input_ids) if longest is None else longest
                self._interpolate_single(
                    at[single], seen[single] > 0, longest[at[single]] - length, cost, order
                )
                done[at[single]] = True
            on = (input_ids[at + 1] != self.config.bos_token_id) & (at + 2 < len(input_ids))
            at, low, high = at[on] + 1, child_low[on], child_high[on]

    def longest_match(self, input_ids: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """At every position, the length of the longest n-gram ending there that the text holds.

        Documents may stand one after another, each opened by BOS.
        """
        where = torch.arange(len(input_ids), device=input_ids.device)
        opens = torch.nonzero(input_ids == self.config.bos_token_id)[:, 0]
        ends = torch.cat([opens, where.new_tensor([len(input_ids)])])
        return self.text.longest_match(
            input_ids, ends[torch.searchsorted(opens, where, right=True)]
        )

    def count(self, input_ids: Int[Tensor, " N"]) -> int:
        """Count how often the text holds this n-gram."""
        size = torch.tensor([len(input_ids)], device=input_ids.device)
        length, (low, high) = self.text.find_longest_prefix(input_ids, torch.zeros_like(size), size)
        return int(high - low) if int(length) == len(input_ids) else 0

    def find_continuations(self, input_ids: Int[Tensor, " N"]) -> Continuations:
        """Find the tokens that came after the longest end of `input_ids` that occurs."""
        length = int(self.longest_match(input_ids)[-1])
        size = torch.tensor([length], device=input_ids.device)
        _, (low, high) = self.text.find_longest_prefix(
            input_ids[len(input_ids) - length :], torch.zeros_like(size), size
        )
        _, tokens, counts = self._list_children(low, high, size)
        is_token = tokens >= 0  # -1 is the end of the whole text
        return Continuations(length, tokens[is_token], counts[is_token])

    @property
    def _discounts(self) -> list[float]:
        return self.config.discounts or [0.0]

    def _shares(
        self, low: Tensor, high: Tensor, length: Tensor | int, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The share of a token `seen` so often after each context, and the shorter one's weight."""
        discounts = torch.tensor(self._discounts, dtype=torch.double, device=low.device)
        discount = discounts[
            torch.as_tensor(length, device=low.device).clamp(max=len(discounts) - 1)
        ]
        begin, end = self.text.find_changes(low, high, length)
        total = high - low
        return (seen - discount).clamp(min=0) / total, discount * (end - begin + 1) / total

    def _interpolate_single(
        self, at: Tensor, is_seen: Tensor, more: Tensor, cost: Tensor, order: Tensor
    ) -> None:
        """Interpolate with `more` longer contexts at once, all of which occur once.

        The discount must no longer change with the length.
        """
        kept = self._discounts[-1] ** more.double()
        cost[at + 1] = torch.where(is_seen, 1 - kept * (1 - cost[at + 1]), kept * cost[at + 1])
        order[at[is_seen] + 1] += more[is_seen]

    def _step(
        self, low: Tensor, high: Tensor, tokens: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Find the contexts of 1, 2, ... tokens that end with `tokens` (B,), from those before.

        A column is a length; there are as many as occur in some row.
        """
        lengths = torch.arange(1, low.shape[1] + 1, device=low.device)
        going = (high > low) & (real & (tokens != self.config.bos_token_id))[:, None]
        rows, columns = torch.nonzero(going, as_tuple=True)
        longer = torch.zeros_like(low), torch.zeros_like(high)
        found = self.text.extend(low[going], high[going], lengths[columns], tokens[rows])
        ranges = []
        for single, wider, values in zip(self.text.begin(tokens), longer, found, strict=True):
            wider[going] = values.long()
            ranges.append(torch.cat([single.long().masked_fill(~real, 0)[:, None], wider], dim=1))
        low, high = ranges
        # Where a context does not occur, no longer one does.
        size = int((high > low).any(dim=0).sum())
        return low[:, :size], high[:, :size]

    def _distribution(
        self, low: Int[Tensor, "B lengths"], high: Int[Tensor, "B lengths"]
    ) -> Float[Tensor, "B V"]:
        """log P of the next token: each length's share times the weights of all longer ones."""
        going = high > low
        rows, columns = torch.nonzero(going, as_tuple=True)
        lengths = columns + 1
        first, last = low[going], high[going]
        _, weight = self._shares(first, last, lengths, torch.zeros_like(first))
        weights = torch.ones(low.shape, dtype=torch.double, device=low.device)
        weights[going] = weight
        # The weight that is left to each length.
        left = torch.cat([weights, weights.new_ones((len(low), 1))], dim=1)
        left = left.flip(1).cumprod(1).flip(1)
        result = self.unigrams.double() * left[:, :1]
        places, tokens, counts = self._list_children(first, last, lengths)
        share, _ = self._shares(first[places], last[places], lengths[places], counts)
        result.index_put_(
            (rows[places], tokens), share * left[rows[places], lengths[places]], accumulate=True
        )
        return result.log().float()

    def _list_children(
        self, low: Tensor, high: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """List every token that followed the n-gram of each range, as (range, token, count)."""
        begin, end = self.text.find_changes(low, high, lengths)
        inner, changes = expand_ranges(begin, end)
        places = torch.cat([torch.arange(len(low), device=low.device), inner])
        starts = torch.cat([low, self.text.changes[changes].long()])
        order = torch.argsort(places * len(self.text.suffixes) + starts)
        places, starts = places[order], starts[order]
        ends = torch.cat([starts[1:], starts[:1]])
        is_last = torch.ones_like(places, dtype=torch.bool)
        is_last[:-1] = places[1:] != places[:-1]
        ends = torch.where(is_last, high[places], ends)
        tokens = self.text.tokens[self.text.suffixes[starts] + lengths[places]].long()
        return places, tokens, ends - starts
