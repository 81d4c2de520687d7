"""Rung 2: count longer histories, and back off well.

Below:   bigram.py sees one token back and treats all unseen pairs alike.
New:     histories of any length; a count is discounted, and what it gives up goes to the shorter history.
Missing: two histories are the same or they are not; nothing is learned from likeness (rnn.py does).

Interpolated modified Kneser-Ney (Chen & Goodman 1998, section 3; Heafield et al. 2013, section 2), kept as
KenLM and ARPA files do: for every n-gram its probability, for every history its back-off weight.
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from rung.models.bigram import find_continuations
from rung.models.causal import State, StatefulModel, keep_logits, real_tokens

logger = logging.getLogger(__name__)

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # what lmplz --discount_fallback uses


class NgramConfig(PreTrainedConfig):
    """`order` counts the predicted token too: 5 looks four tokens back."""

    model_type = "rung-ngram"

    vocab_size: int = 0
    order: int = 5
    num_ngrams: list[int] | None = None  # of order 1 (= vocab_size), 2, ..., order
    discounts: list[list[float]] | None = None  # D1, D2, D3+ by order
    num_hidden_layers: int = 1
    use_cache: bool = True
    tie_word_embeddings: bool = False


class NgramForCausalLM(StatefulModel):
    """Interpolated modified Kneser-Ney of any order.

    The n-grams are a trie: an n-gram of order k is the pair (its first k-1 tokens as an n-gram, its last
    token), packed as parent * V + token and sorted, so its place in that row is its number.
    """

    config_class = NgramConfig

    def __init__(self, config: NgramConfig) -> None:
        super().__init__(config)
        sizes = config.num_ngrams or [config.vocab_size] + [0] * (config.order - 1)
        for order, size in enumerate(sizes, start=1):
            if order > 1:
                self.register_buffer(f"keys_{order}", torch.zeros(size, dtype=torch.int64))
            self.register_parameter(f"probability_{order}", _table(size))
            if order < len(sizes):
                self.register_parameter(f"backoff_{order}", _table(size))
        self.post_init()

    @classmethod
    def fit(cls, config: NgramConfig, tokens: numpy.ndarray, starts: numpy.ndarray) -> "NgramForCausalLM":
        """Estimate from `tokens` (N,), whose documents begin at `starts` and open with the BOS token."""
        ids = tokens.astype(numpy.int64)
        bos = int(ids[0])
        levels = list(_count(ids, starts, config.order, config.vocab_size))
        config.order = len(levels)  # no document is as long as a higher order
        config.num_ngrams = [len(level.keys) for level in levels]
        config.discounts = []
        model = cls(config)
        lower = numpy.full(1, 1.0 / _predictable(config, bos))
        for order, level in enumerate(levels, start=1):
            is_highest = order == len(levels)
            counts = level.counts if is_highest else _adjust(level, levels[order], bos)
            if order == 1 and bos in _never_predicted(config, bos):
                counts[bos] = 0
            discounts = estimate_discounts(counts, order)
            config.discounts.append(discounts)
            probability, backoff = _interpolate(level, counts, discounts, lower)
            if order == 1:
                probability[list(_never_predicted(config, bos))] = 0
            model.get_parameter(f"probability_{order}").copy_(torch.from_numpy(probability))
            if order > 1:
                model.get_parameter(f"backoff_{order - 1}").copy_(torch.from_numpy(backoff))
                model.get_buffer(f"keys_{order}").copy_(torch.from_numpy(level.keys))
            lower = probability
        return model

    @torch.no_grad()
    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Shaped[Tensor, "B S"] | None = None,
        past_key_values: State | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Log-probabilities (B, T, V) of the token after each of `input_ids` (B, T)."""
        real = real_tokens(input_ids, attention_mask)
        histories = self.find_histories(input_ids, real, past_key_values)  # B T order-1
        state = State((histories[:, -1],), input_ids.shape[1] + (past_key_values.length if past_key_values else 0))
        probabilities = self._distributions(keep_logits(histories, logits_to_keep))
        return self.make_output(probabilities.log(), labels, state, options)

    def find_histories(self, input_ids: Tensor, real: Tensor, state: State | None) -> Tensor:
        """The n-gram that the last 1, 2, ..., order-1 tokens are, (B, T, order-1); -1 where never seen."""
        orders = max(self.config.order - 1, 1)
        before = state.tensors[0] if state else input_ids.new_full((len(input_ids), orders), -1)
        found = [input_ids.masked_fill(~real, -1)]
        for order in range(2, self.config.order):
            shorter = torch.cat([before[:, None, order - 2], found[-1][:, :-1]], dim=1)  # B T
            keys = shorter * self.config.vocab_size + input_ids
            table = self.get_buffer(f"keys_{order}")
            place = torch.searchsorted(table, keys).clamp(max=max(len(table) - 1, 0))
            seen = real & (shorter >= 0) & (table[place] == keys if len(table) else False)
            found.append(place.masked_fill(~seen, -1))
        return torch.stack(found, dim=-1)

    def _distributions(self, histories: Tensor) -> Tensor:
        """P(next token) for each row of histories (..., order-1) as (..., V)."""
        flat = histories.flatten(0, -2)
        result = self.get_parameter("probability_1").expand(len(flat), -1).clone()  # BT V
        for order in range(2, self.config.order + 1):
            contexts = flat[:, order - 2]
            backoff = self.get_parameter(f"backoff_{order - 1}")[contexts.clamp(min=0)]
            result *= torch.where(contexts >= 0, backoff, 1.0)[:, None]
            keys = self.get_buffer(f"keys_{order}")
            rows, found = find_continuations(keys, contexts, self.config.vocab_size)
            result[rows, keys[found] % self.config.vocab_size] = self.get_parameter(f"probability_{order}")[found]
        return result.view(*histories.shape[:-1], -1)


class _Level:
    """The n-grams of one order: sorted keys, raw counts, and one place in the text where each stands."""

    def __init__(self, keys: numpy.ndarray, counts: numpy.ndarray, parents: numpy.ndarray) -> None:
        self.keys = keys
        self.counts = counts
        self.parents = parents  # the n-gram of all but the last token
        self.suffixes = numpy.zeros(len(keys), dtype=numpy.int64)  # the n-gram of all but the first token
        self.begins_document = numpy.zeros(len(keys), dtype=bool)


def _table(size: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(size), requires_grad=False)


def _count(ids: numpy.ndarray, starts: numpy.ndarray, order: int, vocab_size: int) -> Iterator[_Level]:
    """Every n-gram of order 1, 2, ... that lies within a document."""
    ends = numpy.append(starts[1:], len(ids))
    room = numpy.repeat(ends, ends - starts) - numpy.arange(len(ids))  # tokens from here to the document's end
    is_start = numpy.zeros(len(ids), dtype=bool)
    is_start[starts] = True
    level = _Level(
        numpy.arange(vocab_size), numpy.bincount(ids, minlength=vocab_size), numpy.zeros(vocab_size, dtype=numpy.int64)
    )
    level.begins_document[numpy.unique(ids[starts])] = True
    yield level
    number = ids  # of the n-gram that begins at each position
    for size in range(2, order + 1):
        at = numpy.flatnonzero(room >= size)
        if len(at) == 0:
            return
        packed = number[at] * vocab_size + ids[at + size - 1]
        keys, first, inverse, counts = numpy.unique(packed, return_index=True, return_inverse=True, return_counts=True)
        level = _Level(keys, counts, keys // vocab_size)
        level.suffixes = number[at[first] + 1]
        level.begins_document = is_start[at[first]]
        number = numpy.full(len(ids), -1, dtype=numpy.int64)
        number[at] = inverse
        yield level


def _adjust(level: _Level, longer: _Level, bos: int) -> numpy.ndarray:
    """How many different tokens stand before each n-gram; n-grams that open a document keep their count.

    Heafield et al. (2013), section 3.3.
    """
    extensions = numpy.bincount(longer.suffixes, minlength=len(level.keys))
    return numpy.where(level.begins_document, level.counts, extensions)


def estimate_discounts(counts: numpy.ndarray, order: int) -> list[float]:
    """D1, D2, D3+ from the counts of counts (Chen & Goodman 1998, equation 26).

    Where these are undefined or out of range, which small or odd texts make them, the fixed discounts
    0.5, 1, 1.5 stand in, and the log says so.
    """
    t1, t2, t3, t4 = (int((counts == j).sum()) for j in (1, 2, 3, 4))
    if min(t1, t2, t3) > 0:
        y = t1 / (t1 + 2 * t2)
        found = [1 - 2 * y * t2 / t1, 2 - 3 * y * t3 / t2, 3 - 4 * y * t4 / t3]
        if all(0 <= d <= j for j, d in enumerate(found, start=1)):
            return found
    logger.info(
        "order %d: counts of counts %d, %d, %d, %d leave a discount undefined; using 0.5, 1, 1.5", order, t1, t2, t3, t4
    )
    return list(FALLBACK_DISCOUNTS)


def _interpolate(
    level: _Level, counts: numpy.ndarray, discounts: list[float], lower: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Each n-gram's probability, and each history's back-off weight (1 where nothing follows it)."""
    histories = int(level.parents.max()) + 1 if len(level.parents) else 1
    size = max(len(lower), histories) if level.suffixes.any() or len(lower) > 1 else 1
    discount = numpy.array([0.0, *discounts])[numpy.minimum(counts, 3)]
    total = numpy.bincount(level.parents, weights=counts, minlength=size)
    removed = numpy.bincount(level.parents, weights=discount, minlength=size)
    seen = total > 0
    backoff = numpy.ones(size)
    backoff[seen] = removed[seen] / total[seen]
    share = numpy.zeros(len(counts))
    numpy.divide(counts - discount, total[level.parents], out=share, where=seen[level.parents])
    return share + backoff[level.parents] * lower[level.suffixes], backoff


def _never_predicted(config: NgramConfig, bos: int) -> set[int]:
    """The tokens that never follow anything: BOS and PAD, unless one of them also ends documents."""
    return {t for t in (bos, config.pad_token_id) if t is not None and t != config.eos_token_id}


def _predictable(config: NgramConfig, bos: int) -> int:
    return config.vocab_size - len(_never_predicted(config, bos))
