"""A model made ready to write: prompts are read by its forward pass, tokens appended one at a time.

Prompts of unequal length stand side by side, padded on the left. Keys and values lie in memory that
is taken once; on a CPU transformers append in C, at the speed that the weights are read
(native.py). Where a model looks at a limited number of tokens and its window is full, the last half
of it is read again, and the writing goes on.
"""

from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rung.errors import RunError
from rung.generation.native import native_step
from rung.generation.sampling import Sampling, choose
from rung.models.base import CausalModel, KVCache


class Decoder:
    """Reads prompts and appends tokens. Made once for a model; every `read` begins anew.

    `weights` rounds what tokens are appended with, to torch.bfloat16 or torch.int8. Raises
    `RunError` where there is no step in C to do it.
    """

    def __init__(self, model: CausalModel, weights: torch.dtype | None = None) -> None:
        self.model = model
        self.weights = weights
        self.device = model.device
        self.native = native_step(model, weights)
        if weights is not None and self.native is None:
            raise RunError(
                f"weights can be rounded to {str(weights).removeprefix('torch.')} only for gpt2 "
                f"and llama3 on a CPU, "
                "where there is a C compiler: leave --weights out"
            )
        self.state: Any = None

    def read(self, prompts: Sequence[Sequence[int]], wanted: int) -> Float[Tensor, "B V"]:
        """Logits of the token after each prompt: of all of them, where they fit the window; else of
        their ends, which leave room for some more.

        `left` says how many may be appended: `wanted`, or what the window has room for.
        """
        if window := self.model.context_length:
            if max(map(len, prompts)) > window:
                kept = window - min(wanted, max(1, window // 2))
                prompts = [prompt[-kept:] for prompt in prompts]
            wanted = min(wanted, window - max(map(len, prompts)))
        width, self.left = max(map(len, prompts)), wanted
        ids = torch.tensor(
            [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=self.device
        )
        self.ahead = torch.tensor([width - len(prompt) for prompt in prompts], device=self.device)
        self.ragged = bool(self.ahead.any())
        self.real = torch.arange(width + wanted, device=self.device) >= self.ahead[:, None]  # B S
        is_stateful = (
            not self.model._supports_default_dynamic_cache()
        )  # asked so that an adapter around it answers too
        self.state = None if is_stateful else KVCache(width + wanted)
        options = {"attention_mask": self.real[:, :width].long()} if self.ragged else {}
        output = self.model(
            ids, past_key_values=self.state, use_cache=True, logits_to_keep=1, **options
        )
        self.state = output.past_key_values
        if self.native:
            self.native.begin(self.state, self.ahead)
        return output.logits[:, -1]

    def append(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the token after each of `tokens`, which follow what is there; the next call may
        overwrite them.
        """
        self.left -= tokens.shape[1]
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
        self.left += count


def find_ends(model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a text: the tokenizer's end, and all that the model's `generation_config`
    names.
    """
    named = model.generation_config.eos_token_id if model.generation_config else None
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return tuple(sorted(end for end in ends if end is not None))


def write_tokens(
    decoder: Decoder, prompts: Sequence[Sequence[int]], sampling: Sampling, ends: Container[int]
) -> Iterator[list[int | None]]:
    """The tokens of each prompt's continuation, a step at a time; None after one of `ends`, which
    is given out too.

    Stops when all have ended or `max_new_tokens` are there.
    """
    generator = torch.Generator(decoder.device).manual_seed(sampling.seed)
    texts, ended = [list(prompt) for prompt in prompts], [False] * len(prompts)
    logits = decoder.read(texts, sampling.max_new_tokens)
    for left in range(sampling.max_new_tokens - 1, -1, -1):
        chosen = choose(logits, sampling, generator)
        tokens = chosen.tolist()
        yield [None if over else token for over, token in zip(ended, tokens, strict=True)]
        ended = [over or token in ends for over, token in zip(ended, tokens, strict=True)]
        if left == 0 or all(ended):
            return
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        logits = (
            decoder.append(chosen[:, None])[:, -1] if decoder.left else decoder.read(texts, left)
        )
