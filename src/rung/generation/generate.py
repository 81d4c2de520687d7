"""Continue a prompt, and hand the text out as it comes.

Sampling and greedy decoding run in rung's own loop, with nothing between the tokens but the model;
beam search is `generate` of Hugging Face.
"""

import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from rung.data.tokenizer import encode_after_bos
from rung.errors import RecipeError
from rung.generation.decoder import Decoder, find_stop_ids, generate_tokens
from rung.generation.detokenize import Detokenizer
from rung.generation.sampling import Sampling
from rung.generation.speculative import Draft, check_draft, generate_speculatively, make_draft
from rung.models.base import CausalModel, check_finite

__all__ = [
    "Decoder",
    "Draft",
    "Generation",
    "Sampling",
    "find_stop_ids",
    "generate",
    "generate_batch",
    "generate_from_ids",
    "make_draft",
]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A continuation, its number of tokens, and the seconds that it took, prefill included."""

    text: str
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second, prefill included."""
        return self.tokens / self.seconds if self.seconds else 0.0


def generate(
    model: CausalModel | Decoder,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
    draft: Draft | None = None,
) -> Generation:
    """Continue `prompt`; `on_text` gets each piece of text as it is decided (not with beams).

    Pass a `Decoder` to prepare the model only once for many prompts. A `draft` changes how fast the
    text comes, not its distribution.
    """
    if sampling.num_beams > 1:
        return _search_beams(model, tokenizer, prompt, sampling, draft)
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    ids, stop_ids = encode_after_bos(tokenizer, prompt), find_stop_ids(decoder.model, tokenizer)
    if draft is None:
        steps = generate_tokens(decoder, [ids], sampling, stop_ids)
    else:
        check_draft(decoder)
        steps = generate_speculatively(decoder, ids, sampling, stop_ids, draft)
    detokenizers = [_make_detokenizer(tokenizer, prompt, ids, sampling)]
    return _collect(steps, detokenizers, on_text, sampling.max_time)[0]


def generate_batch(
    model: CausalModel | Decoder,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
) -> list[Generation]:
    """Continue prompts side by side; `seconds` of each is what all of them took."""
    if sampling.num_beams > 1:
        return [_search_beams(model, tokenizer, prompt, sampling, None) for prompt in prompts]
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    rows = [encode_after_bos(tokenizer, prompt) for prompt in prompts]
    steps = generate_tokens(decoder, rows, sampling, find_stop_ids(decoder.model, tokenizer))
    detokenizers = [
        _make_detokenizer(tokenizer, prompt, ids, sampling)
        for prompt, ids in zip(prompts, rows, strict=True)
    ]
    return _collect(steps, detokenizers, max_time=sampling.max_time)


def generate_from_ids(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Container[int],
    on_text: Callable[[str], None] | None = None,
) -> list[Generation]:
    """Continue prompts that are token ids, each until one of `stop_ids`.

    Each continuation is decoded as a text of its own, as the answer in a chat is. `on_text` gets
    the pieces of the first.
    """
    steps = generate_tokens(decoder, prompts, sampling, stop_ids)
    detokenizers = [Detokenizer(tokenizer, sampling.stop) for _ in prompts]
    return _collect(steps, detokenizers, on_text, sampling.max_time)


def _collect(
    steps: Iterator[list[int | None]],
    detokenizers: list[Detokenizer],
    on_text: Callable[[str], None] | None = None,
    max_time: float | None = None,
) -> list[Generation]:
    """Detokenize the steps, one at least; `on_text` gets the text of the first continuation."""

    def emit(text: str, detokenizer: Detokenizer) -> None:
        if text and on_text and detokenizer is detokenizers[0]:
            on_text(text)

    started = time.perf_counter()
    with torch.inference_mode():
        for tokens in steps:
            for detokenizer, token in zip(detokenizers, tokens, strict=True):
                if token is not None and not detokenizer.stopped:
                    emit(detokenizer.add(token), detokenizer)
            is_late = max_time is not None and time.perf_counter() - started > max_time
            if is_late or all(detokenizer.stopped for detokenizer in detokenizers):
                break
    seconds = time.perf_counter() - started
    for detokenizer in detokenizers:
        emit(detokenizer.finish(), detokenizer)
    return [
        Generation(text=detokenizer.text, tokens=len(detokenizer.ids), seconds=seconds)
        for detokenizer in detokenizers
    ]


def _make_detokenizer(
    tokenizer: PreTrainedTokenizerBase, prompt: str, ids: Sequence[int], sampling: Sampling
) -> Detokenizer:
    """Make the detokenizer of the continuation of `prompt`, which has these ids."""
    return Detokenizer(tokenizer, sampling.stop, ids, after_space=prompt[-1:].isspace())


def _check_scores(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the scores unchanged; raise `RunError` if one is no number."""
    check_finite(scores)
    return scores


def _search_beams(
    model: CausalModel | Decoder,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    draft: Draft | None,
) -> Generation:
    is_quantized = isinstance(model, Decoder) and model.weights is not None
    model = model.model if isinstance(model, Decoder) else model
    if sampling.stop or draft or is_quantized:
        raise RecipeError(
            f"num_beams is {sampling.num_beams}: with beams there are no stop strings, no draft "
            "and no rounded weights"
        )
    room, ids = sampling.max_new_tokens, encode_after_bos(tokenizer, prompt)
    detokenizer = _make_detokenizer(tokenizer, prompt, ids, sampling)
    # Beams do not slide: they stop where the window ends.
    if window := model.context_length:
        room = min(room, max(1, window // 2))
        ids = ids[-(window - room) :]
    sampled = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }
    options = {"do_sample": False} if sampling.is_greedy else {"do_sample": True} | sampled
    inputs = torch.tensor([ids], device=model.device)
    started = time.perf_counter()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(sampling.seed)
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_length=inputs.shape[1] + room,
            num_beams=sampling.num_beams,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=list(find_stop_ids(model, tokenizer)) or None,
            logits_processor=LogitsProcessorList([_check_scores]),
            **options,
        )
    new = output[0, inputs.shape[1] :].tolist()
    for token in new:
        detokenizer.add(token)
    detokenizer.finish()
    seconds = time.perf_counter() - started
    return Generation(text=detokenizer.text, tokens=len(new), seconds=seconds)
