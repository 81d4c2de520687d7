"""A trigram model as a teacher: its distributions as soft targets of another model's training.

A text that is read for a minute shows few continuations of most contexts; the counts of all of it
know many (Xie et al. 2017, section 3, smooth a network's training by n-gram statistics in this
way). The gradient of cross-entropy for soft targets T is softmax - T, so T is subtracted where the
gradient of the hard targets stands already.
"""

import ctypes
import math
from functools import cache, partial
from pathlib import Path

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig

from rung.compiler import Address, compile_source
from rung.models.lookup import expand_ranges
from rung.models.ngram.model import NgramConfig, NgramForCausalLM

SOURCE = Path(__file__).with_name("teacher.c")
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
        self.weights, self.shares = torch.ones(1), torch.zeros(0)
        self.first, self.tokens = torch.zeros(2, dtype=torch.int32), torch.zeros(0).int()
        if self.model.config.order == ORDER:
            self._divide_trigrams()

    def _divide_trigrams(self) -> None:
        """Find of every trigram the share that it has beyond the bigram."""
        model = self.model
        self.first, self.tokens = model.get_buffer("first_2"), model.get_buffer("tokens_3")
        last = model.get_buffer("tokens_2").long()
        self.weights = _from_log10(model.get_parameter("log10_backoff_2"))
        contexts = torch.repeat_interleave(torch.arange(len(last)), self.first.diff().long())
        lower = self.bigram[last[contexts], self.tokens.long()]
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
        trained = (targets[rows] >= 0).float() * share
        ids = input_ids.flatten()[rows].contiguous()
        found = torch.full_like(ids, -1)
        if len(self.shares):
            found = self.model.find_ngrams(input_ids, 2)[1].flatten()[rows].contiguous()
        library = _compile() if gradient.dtype == torch.float32 else None
        subtract = self._subtract if library is None else partial(self._subtract_in_c, library)
        subtract(gradient, ids, found, trained)
        places = torch.arange(len(ids)), targets[rows].clamp(min=0)
        gradient.index_put_(places, trained.to(gradient.dtype), accumulate=True)

    def _subtract(
        self,
        gradient: Float[Tensor, "N V"],
        ids: Int[Tensor, " N"],
        found: Int[Tensor, " N"],
        trained: Float[Tensor, " N"],
    ) -> None:
        """Subtract the probabilities after `ids` and the bigrams `found`, `trained` times."""
        known = found.clamp(min=0)
        weights = torch.where(found < 0, 1.0, self.weights[known]) * trained
        gradient.sub_(self.bigram[ids] * weights[:, None])
        begin, end = self.first[known], self.first[known + 1]
        rows, trigrams = expand_ranges(begin, torch.where(found < 0, begin, end))
        shares = (-self.shares[trigrams] * trained[rows]).to(gradient.dtype)
        places = rows * gradient.shape[1] + self.tokens[trigrams].long()
        gradient.view(-1).index_add_(0, places, shares)

    def _subtract_in_c(
        self,
        library: ctypes.CDLL,
        gradient: Float[Tensor, "N V"],
        ids: Int[Tensor, " N"],
        found: Int[Tensor, " N"],
        trained: Float[Tensor, " N"],
    ) -> None:
        """Do as `_subtract` does, in one pass."""
        numbers = [Address(part, ids.shape, torch.int64) for part in (ids, found)]
        numbers.append(Address(trained, ids.shape, torch.float32))
        numbers += [
            Address(table, table.shape, table.dtype)
            for table in (self.bigram, self.weights, self.first, self.tokens, self.shares)
        ]
        written = Address(gradient, (len(ids), len(self.bigram)), torch.float32)
        library.subtract_trigrams(*gradient.shape, *numbers, written)


@cache
def _compile() -> ctypes.CDLL | None:
    library = compile_source(SOURCE)
    if library is not None:
        library.subtract_trigrams.argtypes = [ctypes.c_int64] * 2 + [ctypes.c_void_p] * 9
        library.subtract_trigrams.restype = None
    return library


def _from_log10(values: Tensor) -> Tensor:
    return torch.exp(values * math.log(10))
