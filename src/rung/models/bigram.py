"""Rung 1: count pairs.

Below:   nothing; every token equally likely costs ln V nats.
New:     how often each token followed each other one, with one added to every count.
Missing: sees one token back, and gives every unseen pair the same chance (ngram.py does better).
"""

from typing import Any

import numpy
import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from rung.models.base import RecurrentState, StatefulModel, select_positions
from rung.models.config_checks import RungConfig
from rung.models.exact_probabilities import ExactProbabilities, TrieLevel, sum_before
from rung.models.forward_options import accept_forward_options
from rung.models.lookup import expand_ranges

PAIRS_AT_ONCE = 2**22  # pairs counted together: 200 MB


class BigramConfig(RungConfig):
    """`num_bigrams` distinct pairs were seen in training."""

    model_type = "rung-bigram"

    vocab_size: int = 1
    num_bigrams: int = 0
    num_hidden_layers: int = 1
    use_cache: bool = True
    tie_word_embeddings: bool = False


class BigramForCausalLM(StatefulModel):
    """P(w | h) = (C(hw) + 1) / (C(h) + V), add-one smoothing (Jurafsky & Martin, section 3.6).

    C(h) counts h where something follows it. The table is sparse: only pairs that occur are stored.
    """

    config_class = BigramConfig

    def __init__(self, config: BigramConfig) -> None:
        super().__init__(config)
        size, vocabulary = config.num_bigrams, config.vocab_size
        # The first pair of each h.
        self.register_buffer("first", torch.zeros(vocabulary + 1, dtype=torch.int32))
        self.register_buffer("tokens", torch.zeros(size, dtype=torch.int32))  # w, sorted for each h
        self.counts = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.contexts = nn.Parameter(torch.zeros(vocabulary), requires_grad=False)  # C(h)
        self.post_init()

    @classmethod
    def fit(
        cls, config: BigramConfig, tokens: numpy.ndarray, starts: numpy.ndarray
    ) -> "BigramForCausalLM":
        """Count the pairs of `tokens` (N,), whose documents begin at `starts`.

        No pair spans two documents.
        """
        size = config.vocab_size
        pairs, counts = count_pairs(tokens, starts, size)
        config.num_bigrams = len(pairs)
        model = cls(config)
        model.first[1:] = torch.bincount(pairs // size, minlength=size).cumsum(0)
        model.tokens.copy_(pairs % size)
        model.counts.copy_(counts)
        model.contexts.copy_(
            torch.zeros(size, dtype=torch.int64).index_add_(0, pairs // size, counts)
        )
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
        history = select_positions(input_ids, logits_to_keep)
        vocabulary = self.config.vocab_size
        total = self.contexts[history].flatten()[:, None] + vocabulary  # BT 1
        probabilities = (1 / total).expand(-1, vocabulary).contiguous()  # BT V
        contexts = history.flatten()
        rows, found = expand_ranges(self.first[contexts], self.first[contexts + 1])
        values = (self.counts[found] + 1) / total[rows, 0]
        probabilities[rows, self.tokens[found].long()] = values
        logits = probabilities.log().view(*history.shape, vocabulary)
        length = input_ids.shape[1] + (past_key_values.length if past_key_values else 0)
        return self.make_output(logits, labels, RecurrentState((), length), options)

    def make_exact_probabilities(self) -> ExactProbabilities:
        """Make whole numbers of its probabilities: C(hw) + 1 of each token after h."""
        counts = self.counts.detach().cpu().numpy().astype(numpy.int64)
        level = TrieLevel(
            first=self.first.cpu().numpy().astype(numpy.int64),
            tokens=numpy.ascontiguousarray(self.tokens.cpu().numpy()),
            own=sum_before(counts),
            weight=numpy.ones(self.config.vocab_size),
        )
        ones = numpy.arange(self.config.vocab_size + 1, dtype=numpy.int64)
        return ExactProbabilities(ones, [level], slack=0)


def count_pairs(
    tokens: numpy.ndarray, starts: numpy.ndarray, size: int
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Count the pairs, each as the number h V + w; return them in order, and their counts.

    The text is read part by part. A part is as long as the list of pairs so far, so that sorting
    the list again does not take the most time.
    """
    pairs = counts = torch.empty(0, dtype=torch.int64)
    at, end = 0, len(tokens) - 1
    while at < end:
        stop = min(end, at + max(PAIRS_AT_ONCE, len(pairs)))
        ids = torch.from_numpy(tokens[at : stop + 1].astype(numpy.int64))
        within = torch.ones(stop - at, dtype=torch.bool)
        first, last = numpy.searchsorted(starts, (at + 1, stop + 1))
        within[torch.from_numpy(starts[first:last] - (at + 1))] = False
        found, often = torch.unique((ids[:-1] * size + ids[1:])[within], return_counts=True)
        pairs, places = torch.unique(torch.cat([pairs, found]), return_inverse=True)
        counts = torch.zeros_like(pairs).index_add_(0, places, torch.cat([counts, often]))
        at = stop
    return pairs, counts
