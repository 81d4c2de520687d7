"""A trigram model as a teacher: its distributions as soft targets of another model's training.

A text that is read for a minute shows few continuations of most contexts; the counts of all of it
know many (Xie et al. 2017, section 3, smooth a network's training by n-gram statistics in this
way). The gradient of cross-entropy for soft targets T is softmax - T, so T is subtracted where the
gradient of the hard targets stands already.
"""

import math

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig

from rung.models.lookup import expand_ranges
from rung.models.ngram.model import NgramConfig, NgramForCausalLM

# The most tokens of a vocabulary: the bigram's probabilities stand in memory, 4 bytes a pair.
MAX_VOCABULARY = 8192
ORDER = 3


class TrigramTeacher:
    """An interpolated trigram: P(w | u v) = share(w | u v) + weight(u v) P(w | v).

    The bigram's probabilities are a matrix (V, V), and the shares those of seen trigrams alone.
    """

    def __init__(
        self, config: PreTrainedConfig, tokens: numpy.ndarray, starts: numpy.ndarray
    ) -> None:
        """Count `tokens` (N,), whose documents begin at `starts`, for a model of `config`."""
        size = config.vocab_size
        ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id")}
        own = NgramConfig(vocab_size=size, order=ORDER, pad_token_id=config.pad_token_id, **ids)
        self.model = NgramForCausalLM.fit(own, tokens, starts)
        self.model.requires_grad_(False)
        every = torch.arange(size)
        histories = torch.stack([every, torch.full_like(every, -1)], dim=-1)
        self.bigram = self.model.distributions(histories).exp_()  # V V
        self.weights = torch.ones(1)
        self.shares = torch.zeros(0)
        if self.model.config.order == ORDER:
            self._divide_trigrams()

    def _divide_trigrams(self) -> None:
        """Find of every trigram the share that it has beyond the bigram."""
        model = self.model
        first, last = model.get_buffer("first_2"), model.get_buffer("tokens_2").long()
        self.weights = _from_log10(model.get_parameter("log10_backoff_2"))
        contexts = torch.repeat_interleave(torch.arange(len(last)), first.diff().long())
        tokens = model.get_buffer("tokens_3").long()
        lower = self.bigram[last[contexts], tokens]
        whole = _from_log10(model.get_parameter("log10_probability_3"))
        self.shares = whole - self.weights[contexts] * lower

    def blend(
        self,
        gradient: Float[Tensor, "N V"],
        input_ids: Int[Tensor, "B T"],
        targets: Int[Tensor, " N"],
        share: float,
        rows: slice,
    ) -> None:
        """Turn the gradient for hard targets into that for targets which are by `share` ours.

        `gradient` is of the tokens in `rows` of all N = B T; those with a target below 0 are left
        out.
        """
        trained = (targets[rows] >= 0).to(gradient.dtype) * share
        ids = input_ids.flatten()[rows]
        if len(self.shares):
            found = self.model.find_ngrams(input_ids, 2)[1].flatten()[rows]
            weights = torch.where(found < 0, 1.0, self.weights[found.clamp(min=0)])
            self._subtract_trigrams(gradient, found, trained)
        else:
            weights = torch.ones(len(ids))
        gradient.addcmul_(
            self.bigram[ids].to(gradient.dtype), (trained * weights)[:, None].to(gradient), value=-1
        )
        places = torch.arange(len(ids)), targets[rows].clamp(min=0)
        gradient.index_put_(places, trained, accumulate=True)

    def _subtract_trigrams(
        self, gradient: Float[Tensor, "N V"], found: Int[Tensor, " N"], trained: Float[Tensor, " N"]
    ) -> None:
        first, known = self.model.get_buffer("first_2"), found.clamp(min=0)
        end = torch.where(found < 0, first[known], first[known + 1])
        rows, trigrams = expand_ranges(first[known], end)
        tokens = self.model.get_buffer("tokens_3")[trigrams].long()
        shares = (-self.shares[trigrams] * trained[rows]).to(gradient.dtype)
        gradient.view(-1).index_add_(0, rows * gradient.shape[1] + tokens, shares)


def _from_log10(values: Tensor) -> Tensor:
    return torch.exp(values * math.log(10))
