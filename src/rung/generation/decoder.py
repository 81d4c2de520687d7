"""Prefill prompts, then decode token by token.

Prompts of unequal length are padded on the left. Keys and values lie in memory that is allocated
once. On a CPU, transformers do both in C (native.py), other models by their forward pass. When a
model's context window is full, its last half is prefilled again and decoding goes on.
"""

from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rung.errors import RunError
from rung.generation.native import make_native_step
from rung.generation.sampling import Sampling, sample_tokens
from rung.models.base import CausalModel
from rung.models.kv_cache import KVCache


class Decoder:
    """Prefills prompts and decodes tokens. Made once for a model; every `prefill` starts anew.

    `weights` is the type that weights are quantized to: torch.bfloat16 or torch.int8.
    Raises `RunError` where no step in C can do it.
    """

    def __init__(self, model: CausalModel, weights: torch.dtype | None = None) -> None:
        self.model = model
        self.weights = weights
        self.device = model.device
        self.native = make_native_step(model, weights)
        if weights is not None and self.native is None:
            raise RunError(
                f"weights can be rounded to {str(weights).removeprefix('torch.')} only for gpt2 "
                "and llama3 on a CPU, where there is a C compiler: leave --weights out"
            )
        self.state: Any = None

    def prefill(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Float[Tensor, "B V"]:
        """Read the prompts and return the logits of the token after each.

        Prompts that fit the context window are read whole. Of longer ones the end is read, so that
        some new tokens fit too. Afterwards `remaining` says how many tokens can be decoded.
        """
        if window := self.model.context_length:
            if max(map(len, prompts)) > window:
                kept = window - min(max_new_tokens, max(1, window // 2))
                prompts = [prompt[-kept:] for prompt in prompts]
            max_new_tokens = min(max_new_tokens, window - max(map(len, prompts)))
        width, self.remaining = max(map(len, prompts)), max_new_tokens
        if self.native and width <= self.native.longest_prompt:
            self.state, logits = self.native.prefill(prompts, width + max_new_tokens)
            return logits
        ids = torch.tensor(
            [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=self.device
        )
        self.padding = torch.tensor([width - len(prompt) for prompt in prompts], device=self.device)
        self.is_padded = bool(self.padding.any())
        positions = torch.arange(width + max_new_tokens, device=self.device)
        self.mask = positions >= self.padding[:, None]  # B S
        # The model is asked, not its class, so that an adapter around the model answers too.
        is_stateful = not self.model._supports_default_dynamic_cache()
        self.state = None if is_stateful else KVCache(width + max_new_tokens)
        options = {"attention_mask": self.mask[:, :width].long()} if self.is_padded else {}
        output = self.model(
            ids, past_key_values=self.state, use_cache=True, logits_to_keep=1, **options
        )
        self.state = output.past_key_values
        if self.native:
            self.native.begin(self.state, self.padding)
        return output.logits[:, -1]

    def decode(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Append `tokens` and return the logits of the token after each of them.

        The next call may overwrite the logits.
        """
        self.remaining -= tokens.shape[1]
        if self.native:
            return self.native.decode(tokens)
        options = {}
        if self.is_padded:
            end = self.state.get_seq_length() + tokens.shape[1]
            options = {"attention_mask": self.mask[:, :end].long()}
        output = self.model(tokens, past_key_values=self.state, use_cache=True, **options)
        self.state = output.past_key_values
        return output.logits

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens; only keys and values can be cut."""
        self.state.crop(self.state.get_seq_length() - count)
        self.remaining += count


def find_stop_ids(model: CausalModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Find the tokens that end a text: the tokenizer's EOS and those of `generation_config`."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    stop_ids = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return tuple(sorted(token for token in stop_ids if token is not None))


def generate_tokens(
    decoder: Decoder, prompts: Sequence[Sequence[int]], sampling: Sampling, stop_ids: Container[int]
) -> Iterator[list[int | None]]:
    """Continue the prompts together and yield one token of each per step.

    A prompt's continuation ends with one of `stop_ids`, which is yielded; after it comes None.
    Stops when all have ended or have `max_new_tokens`.
    """
    generator = torch.Generator(decoder.device).manual_seed(sampling.seed)
    texts, ended = [list(prompt) for prompt in prompts], [False] * len(prompts)
    logits = decoder.prefill(texts, sampling.max_new_tokens)
    for left in range(sampling.max_new_tokens - 1, -1, -1):
        chosen = sample_tokens(logits, sampling, generator)
        tokens = chosen.tolist()
        yield [None if over else token for over, token in zip(ended, tokens, strict=True)]
        ended = [over or token in stop_ids for over, token in zip(ended, tokens, strict=True)]
        if left == 0 or all(ended):
            return
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        if decoder.remaining:
            logits = decoder.decode(chosen[:, None])[:, -1]
        else:
            logits = decoder.prefill(texts, left)
