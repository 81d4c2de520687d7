"""Continue a prompt: `generate` of Hugging Face, with the text handed out as it comes.

Greedy, sampled or by beams, from any rung. A model that looks at a limited number of tokens gets the end of
the prompt that leaves room, and stops where its window ends.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from rung.errors import RecipeError
from rung.models import CausalModel
from rung.tokenizer import losses


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; temperature 0 always takes the likeliest."""

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0  # 0: no limit
    top_p: float = 0.95
    num_beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "num_beams": self.num_beams >= 1,
        }
        for name, holds in bounds.items():
            if not holds:
                wanted = {"temperature": "0 or more", "top_k": "0 or more", "top_p": "in (0, 1]"}.get(name, "1 or more")
                raise RecipeError(f"{name} is {getattr(self, name)}: it must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The continuation, how many tokens it has, and the seconds of decoding."""

    text: str
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """The rate of decoding, the prompt included."""
        return self.tokens / self.seconds if self.seconds else 0.0


def generate(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """The continuation of `prompt`; `on_text` gets its pieces as they are decided (not with beams)."""
    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
    room = sampling.max_new_tokens
    if window := model.context_length:
        room = min(room, max(1, window // 2))
        ids = ids[-(window - room) :]
    options: dict[str, Any] = {"do_sample": False, "num_beams": sampling.num_beams}
    if sampling.temperature > 0:
        options |= {"do_sample": True, "temperature": sampling.temperature}
        options |= {"top_k": sampling.top_k, "top_p": sampling.top_p}
    space = " " if "white space" in losses(tokenizer) and prompt and not prompt[-1].isspace() else ""
    streamer = _Pieces(tokenizer, on_text, space) if on_text and sampling.num_beams == 1 else None
    inputs = torch.tensor([ids], device=model.device)
    started = time.perf_counter()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(sampling.seed)
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=room,
            streamer=streamer,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **options,
        )
    seconds = time.perf_counter() - started
    new = output[0, len(ids) :]
    text = tokenizer.decode(new, skip_special_tokens=True)
    return Generation(text=space + text if text else "", tokens=len(new), seconds=seconds)


class _Pieces(TextStreamer):
    """Hands text to a function where transformers' own streamer prints it; `space` goes before the first piece."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None], space: str) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text
        self.space = space

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by `generate` with each piece that can no longer change."""
        if text:
            self.on_text(self.space + text)
            self.space = ""
