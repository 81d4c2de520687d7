"""Continue a prompt: decoding with nothing between the tokens but the model, the text handed out as
it comes.

Greedy or sampled from any rung by rung's own loop, by beams with `generate` of Hugging Face.
"""

import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from rung.data.tokenizer import encode_ordinary
from rung.errors import RecipeError
from rung.generation.decoder import Decoder, find_ends, write_tokens
from rung.generation.detokenize import Pieces
from rung.generation.sampling import Sampling
from rung.generation.speculative import Draft, check_draft, make_draft, write_guessed
from rung.models.base import CausalModel, check_finite

__all__ = [
    "Decoder",
    "Draft",
    "Generation",
    "Sampling",
    "continue_tokens",
    "find_ends",
    "generate",
    "generate_batch",
    "make_draft",
]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The continuation, how many tokens it has, and the seconds of decoding: reading the prompt is
    in them.
    """

    text: str
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """The rate of decoding, the prompt included."""
        return self.tokens / self.seconds if self.seconds else 0.0


def generate(
    model: CausalModel | Decoder,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
    draft: Draft | None = None,
) -> Generation:
    """The continuation of `prompt`; `on_text` gets its pieces as they are decided (not with beams).

    A `Decoder` is a model that was made ready before: many prompts in turn need it only once. A
    `draft` guesses ahead; it changes how fast the text comes, not how it is chosen.
    """
    if sampling.num_beams > 1:
        return _search_beams(model, tokenizer, prompt, sampling, draft)
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    ids, ends = _encode(tokenizer, prompt), find_ends(decoder.model, tokenizer)
    if draft is None:
        tokens = write_tokens(decoder, [ids], sampling, ends)
    else:
        check_draft(decoder)
        tokens = write_guessed(decoder, ids, sampling, ends, draft)
    return _gather(tokens, [_go_on(tokenizer, prompt, ids, sampling)], on_text, sampling.max_time)[
        0
    ]


def generate_batch(
    model: CausalModel | Decoder,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
) -> list[Generation]:
    """A continuation of each prompt, side by side: each has the seconds that all of them took."""
    if sampling.num_beams > 1:
        return [_search_beams(model, tokenizer, prompt, sampling, None) for prompt in prompts]
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    rows = [_encode(tokenizer, prompt) for prompt in prompts]
    tokens = write_tokens(decoder, rows, sampling, find_ends(decoder.model, tokenizer))
    pieces = [
        _go_on(tokenizer, prompt, ids, sampling) for prompt, ids in zip(prompts, rows, strict=True)
    ]
    return _gather(tokens, pieces, max_time=sampling.max_time)


def continue_tokens(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    ends: Container[int],
    on_text: Callable[[str], None] | None = None,
) -> list[Generation]:
    """What follows prompts that are token ids already, until one of `ends`; `on_text` gets the
    pieces of the first.

    Each is a text of its own, as an answer is.
    """
    tokens = write_tokens(decoder, prompts, sampling, ends)
    return _gather(
        tokens, [Pieces(tokenizer, sampling.stop) for _ in prompts], on_text, sampling.max_time
    )


def _gather(
    steps: Iterator[list[int | None]],
    pieces: list[Pieces],
    on_text: Callable[[str], None] | None = None,
    max_time: float | None = None,
) -> list[Generation]:
    """What the steps make of each text, one step at least; `on_text` hears the first."""

    def hear(text: str, piece: Pieces) -> None:
        if text and on_text and piece is pieces[0]:
            on_text(text)

    started = time.perf_counter()
    with torch.inference_mode():
        for tokens in steps:
            for piece, token in zip(pieces, tokens, strict=True):
                if token is not None and not piece.stopped:
                    hear(piece.add(token), piece)
            is_late = max_time is not None and time.perf_counter() - started > max_time
            if is_late or all(piece.stopped for piece in pieces):
                break
    seconds = time.perf_counter() - started
    for piece in pieces:
        hear(piece.finish(), piece)
    return [Generation(text=piece.text, tokens=len(piece.ids), seconds=seconds) for piece in pieces]


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """A prompt is text: the names of special tokens in it are read as `rung score` reads them."""
    return [tokenizer.bos_token_id, *encode_ordinary(tokenizer, [prompt])[0].ids]


def _go_on(
    tokenizer: PreTrainedTokenizerBase, prompt: str, ids: Sequence[int], sampling: Sampling
) -> Pieces:
    """The text that is to follow a prompt, of these ids."""
    return Pieces(tokenizer, sampling.stop, ids, spaced=prompt[-1:].isspace())


def _check_scores(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The scores of all tokens as they are, if they are numbers."""
    check_finite(scores)
    return scores


def _search_beams(
    model: CausalModel | Decoder,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    draft: Draft | None,
) -> Generation:
    rounded = isinstance(model, Decoder) and model.weights is not None
    model = model.model if isinstance(model, Decoder) else model
    if sampling.stop or draft or rounded:
        beams = f"num_beams is {sampling.num_beams}"
        raise RecipeError(
            f"{beams}: with beams there are no stop strings, no draft and no rounded weights"
        )
    room, ids = sampling.max_new_tokens, _encode(tokenizer, prompt)
    pieces = _go_on(tokenizer, prompt, ids, sampling)
    if window := model.context_length:  # where it ends the writing stops
        room = min(room, max(1, window // 2))
        ids = ids[-(window - room) :]
    drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    options = {"do_sample": False} if sampling.is_greedy else {"do_sample": True} | drawn
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
            eos_token_id=list(find_ends(model, tokenizer)),
            logits_processor=LogitsProcessorList([_check_scores]),
            **options,
        )
    new = output[0, inputs.shape[1] :].tolist()
    for token in new:
        pieces.add(token)
    pieces.finish()
    return Generation(text=pieces.text, tokens=len(new), seconds=time.perf_counter() - started)
