"""A model made ready to write: prompts are read by its forward pass, tokens appended one at a time.

Prompts of unequal length stand side by side, padded on the left. Keys and values lie in memory that is taken once;
on a CPU transformers append in C, at the speed that the weights are read (native.py).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rung.errors import RunError
from rung.generate.native import native_step
from rung.generate.sampling import Sampling, choose
from rung.models import CausalModel
from rung.models.causal import KeyValues, StatefulModel


class Decoder:
    """Reads prompts and appends tokens. Made once for a model; every `read` begins anew.

    `weights` rounds what tokens are appended with, to torch.bfloat16 or torch.int8. Raises `RunError` where there is
    no step in C to do it.
    """

    def __init__(self, model: CausalModel, weights: torch.dtype | None = None) -> None:
        self.model = model
        self.device = model.device
        self.native = native_step(model, weights)
        if weights is not None and self.native is None:
            raise RunError(
                f"weights can be rounded to {str(weights).removeprefix('torch.')} only for gpt2 and llama3 on a CPU, "
                "where there is a C compiler: leave --weights out"
            )
        self.state: Any = None

    def read(self, prompts: Sequence[Sequence[int]], room: int) -> Float[Tensor, "B V"]:
        """Logits of the token after each prompt; `room` tokens may be appended to them."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=self.device)
        self.ahead = torch.tensor([width - len(prompt) for prompt in prompts], device=self.device)
        self.ragged = bool(self.ahead.any())
        self.real = torch.arange(width + room, device=self.device) >= self.ahead[:, None]  # B S
        self.state = None if isinstance(self.model, StatefulModel) else KeyValues(width + room)
        options = {"attention_mask": self.real[:, :width].long()} if self.ragged else {}
        output = self.model(ids, past_key_values=self.state, use_cache=True, logits_to_keep=1, **options)
        self.state = output.past_key_values
        if self.native:
            self.native.begin(self.state, self.ahead)
        return output.logits[:, -1]

    def append(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the token after each of `tokens`, which follow what is there; the next call may overwrite them."""
        if self.native:
            return self.native.append(tokens)
        end = self.state.get_seq_length() + tokens.shape[1]
        options = {"attention_mask": self.real[:, :end].long()} if self.ragged else {}
        output = self.model(tokens, past_key_values=self.state, use_cache=True, **options)
        self.state = output.past_key_values
        return output.logits

    def forget(self, count: int) -> None:
        """Take back the last `count` tokens; only keys and values can be cut."""
        self.state.crop(self.state.get_seq_length() - count)


def write_tokens(
    decoder: Decoder, prompts: Sequence[Sequence[int]], sampling: Sampling, end: int | None
) -> Iterator[list[int | None]]:
    """The tokens of each prompt's continuation, a step at a time; None after its `end`, which is given out too.

    Stops when all have ended or `max_new_tokens` are there.
    """
    generator = torch.Generator(decoder.device).manual_seed(sampling.seed)
    ended = [False] * len(prompts)
    logits = decoder.read(prompts, sampling.max_new_tokens)
    for left in range(sampling.max_new_tokens - 1, -1, -1):
        chosen = choose(logits, sampling, generator)
        tokens = chosen.tolist()
        yield [None if over else token for over, token in zip(ended, tokens, strict=True)]
        ended = [over or token == end for over, token in zip(ended, tokens, strict=True)]
        if left == 0 or all(ended):
            return
        logits = decoder.append(chosen[:, None])[:, -1]
