"""Rung 2: count longer histories, and back off well.

Below:   bigram.py sees one token back and treats all unseen pairs alike.
New:     histories of any length; a count is discounted, and what it gives up goes to the
         shorter history.
Missing: two histories are the same or they are not; nothing is learned from likeness (rnn.py does).

Interpolated modified Kneser-Ney (Chen & Goodman 1998, section 3; Heafield et al. 2013, section 2),
kept as KenLM and ARPA files do: for every n-gram log10 of its probability, for every history of its
back-off weight.
"""

import math
from typing import Any

import numpy
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from rung.errors import RecipeError
from rung.models.base import CountingModel, RecurrentState, non_padding_mask, select_positions
from rung.models.config_checks import RungConfig
from rung.models.forward_options import accept_forward_options
from rung.models.lookup import expand_ranges, lower_bound
from rung.models.ngram.counting import CountFunction, count_ngrams
from rung.models.ngram.exact import make_exact_ngrams
from rung.models.ngram.smoothing import SmoothingSettings, estimate_tables, list_excluded_tokens
from rung.models.ngram.tables import NgramTable, make_arrays

LN10 = math.log(10)


class NgramConfig(RungConfig):
    """`order` counts the predicted token too: 5 looks four tokens back."""

    model_type = "rung-ngram"

    vocab_size: int = 1
    order: int = 5
    smoothing: str = "kneser-ney"
    k: float = 1.0  # of add-k
    prune: list[int] | None = None  # the highest counts to drop, by order; the last serves the rest
    num_ngrams: list[int] | None = None  # of order 1 (= vocab_size), 2, ..., order
    discounts: list[list[float]] | None = None  # D1, D2, D3+ by order
    num_hidden_layers: int = 1
    use_cache: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **options: Any) -> None:
        self.smoothing_settings()  # raises for a bad field
        super().__post_init__(**options)

    def smoothing_settings(self, excluded: tuple[int, ...] = ()) -> SmoothingSettings:
        """Make the settings of smoothing; raises `RecipeError` for a bad field."""
        return SmoothingSettings(
            smoothing=self.smoothing, k=self.k, prune=tuple(self.prune or ()), excluded=excluded
        )


class NgramForCausalLM(CountingModel):
    """An n-gram model of any order.

    The n-grams are a trie: the children of row r of order k are the rows `first_k[r]` to
    `first_k[r+1]` of order k+1, sorted by their last token. A row costs 17 bytes, one of the
    highest order 9.
    """

    config_class = NgramConfig
    make_exact_probabilities = make_exact_ngrams

    def __init__(self, config: NgramConfig) -> None:
        super().__init__(config)
        sizes = config.num_ngrams or [config.vocab_size] + [0] * (config.order - 1)
        for order, size in enumerate(sizes, start=1):
            self.register_parameter(f"log10_probability_{order}", _table(size))
            self.register_buffer(f"counts_{order}", torch.zeros(size, dtype=torch.uint8))
            if order > 1:
                self.register_buffer(f"tokens_{order}", torch.zeros(size, dtype=torch.int32))
            if order < len(sizes):
                self.register_parameter(f"log10_backoff_{order}", _table(size))
                self.register_buffer(f"first_{order}", torch.zeros(size + 1, dtype=torch.int32))
        self.post_init()

    @classmethod
    def fit(
        cls,
        config: NgramConfig,
        tokens: numpy.ndarray,
        starts: numpy.ndarray,
        count: CountFunction = count_ngrams,
    ) -> "NgramForCausalLM":
        """Estimate from `tokens` (N,), whose documents begin at `starts`, with BOS.

        `count` counts as `count_ngrams` does, in memory or by an engine (`engines.py`).
        """
        excluded = list_excluded_tokens(config, int(tokens[0]))
        levels = list(count(tokens, starts, config.order, config.vocab_size))
        tables, config.discounts = estimate_tables(levels, config.smoothing_settings(excluded))
        return cls.from_tables(config, tables)

    @classmethod
    def from_tables(cls, config: NgramConfig, tables: list[NgramTable]) -> "NgramForCausalLM":
        """Make the model of these tables, without highest orders of no n-gram and no weight."""
        while len(tables) > 1 and not (len(tables[-1].tokens) or tables[-2].log10_backoff.any()):
            tables = tables[:-1]
        sizes = [len(table.tokens) for table in tables]
        if max(sizes) >= 2**31:
            raise RecipeError(
                f"{max(sizes):,} n-grams of one order: a model holds less than 2,147,483,648; drop "
                "rare ones, as in --set prune=[0,0,1]"
            )
        config.order, config.num_ngrams = len(tables), None
        model = cls(config)  # with arrays of no n-gram
        config.num_ngrams = sizes
        for name, values in make_arrays(tables):
            getattr(model, name).data = torch.from_numpy(values)
        return model

    @property
    def is_normalized(self) -> bool:
        """Whether its numbers are probabilities; stupid back-off's are scores."""
        return self.config.smoothing != "stupid-backoff"

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
        real = non_padding_mask(input_ids, attention_mask) if attention_mask is not None else None
        before = past_key_values.tensors[0] if past_key_values else None
        found = self.find_ngrams(input_ids, max(self.config.order - 1, 1), real, before)
        rows = torch.stack(found, dim=-1)  # B T order-1
        length = input_ids.shape[1] + (past_key_values.length if past_key_values else 0)
        state = RecurrentState((rows[:, -1],), length)
        histories = select_positions(rows, logits_to_keep)
        logits = self.distributions(histories.flatten(0, 1)).view(*histories.shape[:2], -1)
        return self.make_output(logits, labels, state, options)

    def find_ngrams(
        self,
        input_ids: Int[Tensor, "B T"],
        highest: int,
        real: Shaped[Tensor, "B T"] | None = None,
        before: Shaped[Tensor, "B histories"] | None = None,
    ) -> list[Int[Tensor, "B T"]]:
        """Find the row of the n-gram of 1, 2, ..., `highest` tokens that ends at every position.

        The row is -1 where the n-gram was never seen. `before` are the rows at the position before
        the first.
        """
        found = [shorter := input_ids if real is None else input_ids.masked_fill(~real, -1)]
        for order in range(2, highest + 1):
            opening = shorter.new_full((len(input_ids), 1), -1)
            if before is not None:
                opening = before[:, order - 2, None]
            parents = torch.cat([opening, shorter[:, :-1]], dim=1)
            shorter = self.find_children(order, parents.flatten(), input_ids.flatten())
            shorter = shorter.view_as(input_ids)
            found.append(shorter if real is None else shorter.masked_fill(~real, -1))
        return found

    @torch.no_grad()
    def score_tokens(
        self, input_ids: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
        rows = self.find_ngrams(input_ids[None], self.config.order)
        cost, order_found = self.log10_probability_1[input_ids], torch.ones_like(input_ids)
        for order in range(2, self.config.order + 1):
            context = torch.nonzero(rows[order - 2][0, :-1] >= 0)[:, 0]
            backoff = self.get_parameter(f"log10_backoff_{order - 1}")
            cost.index_add_(0, context + 1, backoff.index_select(0, rows[order - 2][0, context]))
            here = torch.nonzero(rows[order - 1][0] >= 0)[:, 0]
            probability = self.get_parameter(f"log10_probability_{order}")
            cost[here] = probability.index_select(0, rows[order - 1][0, here])
            order_found[here] = order
        return cost, order_found

    def find_counts(
        self, input_ids: Int[Tensor, " N"]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
        """Find the count, at most 255, of the n-gram that gave each token's cost, and its discount.

        Below the highest order Kneser-Ney's counts are of the different tokens before the n-gram.
        """
        rows = self.find_ngrams(input_ids[None], self.config.order)
        counts = torch.zeros_like(input_ids)
        discounts = torch.zeros(len(input_ids), device=input_ids.device)
        for order in range(1, self.config.order + 1):
            here = torch.nonzero(rows[order - 1][0] >= 0)[:, 0]
            counts[here] = self.get_buffer(f"counts_{order}")[rows[order - 1][0, here]].long()
            known = (self.config.discounts or [[]] * order)[order - 1]
            padded = [0.0, *known, *(known[-1:] or [0.0]) * 3]
            by_count = torch.tensor(padded, device=input_ids.device)
            discounts[here] = by_count[counts[here].clamp(max=3)]
        return counts, discounts

    def find_children(self, order: int, parents: Tensor, tokens: Tensor) -> Tensor:
        """Find the row of each (parent, token) by binary search; -1 where there is none."""
        table, first = self.get_buffer(f"tokens_{order}"), self.get_buffer(f"first_{order - 1}")
        result = torch.full_like(parents, -1)
        if not len(table):  # an order without an n-gram
            return result
        at = torch.nonzero(parents >= 0)[:, 0]
        parent, wanted = parents.index_select(0, at), tokens.index_select(0, at).int()
        begin, end = first.index_select(0, parent), first.index_select(0, parent + 1)
        row = lower_bound(lambda rows: table.index_select(0, rows), begin, end, wanted)
        hit = (row < end) & (table.index_select(0, row.clamp(max=len(table) - 1)) == wanted)
        result[at[hit]] = row[hit].long()
        return result

    def distributions(self, histories: Int[Tensor, "N histories"]) -> Float[Tensor, "N V"]:
        """Return log P of the next token (N, V) for rows of histories that `find_ngrams` found."""
        result = self.log10_probability_1.expand(len(histories), -1).clone()  # N V
        for order in range(2, self.config.order + 1):
            contexts = histories[:, order - 2]
            backoff = self.get_parameter(f"log10_backoff_{order - 1}")[contexts.clamp(min=0)]
            result += backoff.masked_fill_(contexts < 0, 0.0)[:, None]
            first, known = self.get_buffer(f"first_{order - 1}"), contexts.clamp(min=0)
            end = torch.where(contexts < 0, first[known], first[known + 1])
            rows, found = expand_ranges(first[known], end)
            tokens = self.get_buffer(f"tokens_{order}")[found].long()
            result[rows, tokens] = self.get_parameter(f"log10_probability_{order}")[found]
        return result.mul_(LN10)


def _table(size: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(size), requires_grad=False)
