"""Speculative decoding: a cheap draft proposes tokens, the model checks them all in one pass.

A proposed token is accepted while it is the token that the model samples there, so the output has
the model's own distribution; greedily it is the model's very tokens (Leviathan et al. 2023). Drafts
come from an n-gram model, or from the text so far.
"""

import bisect
from collections.abc import Container, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from transformers import PreTrainedTokenizerBase

from rung.data.tokenizer import fingerprint_tokenizer
from rung.errors import RunError
from rung.generation.decoder import Decoder
from rung.generation.sampling import Sampling, sample_tokens
from rung.models import load
from rung.models.ngram.model import NgramForCausalLM

# With the token that is certain these are as many as can be checked at nearly the price of one.
DRAFT_TOKENS = 3
MAX_MATCH = 3  # tokens of the text's end that prompt lookup searches for


@runtime_checkable
class Draft(Protocol):
    """Proposes the next tokens."""

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        """Propose up to `count` tokens that may follow `ids`."""
        ...


class PromptLookupDraft:
    """Proposes what followed the last tokens earlier in the text (Saxena 2023)."""

    def __init__(self) -> None:
        self.ends: dict[tuple[int, ...], int] = {}  # where each n-gram of the text last ended
        self.indexed = 0

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        """Propose what followed the latest of the longest matches; nothing where there is none."""
        # The n-grams that end the whole text are left out: they are what is searched for.
        for end in range(max(self.indexed, 1), len(ids)):
            self._index(ids, end)
        self.indexed = len(ids)
        for size in range(min(MAX_MATCH, len(ids)), 0, -1):
            at = self.ends.get(tuple(ids[-size:]))
            if at is not None:
                return list(ids[at : at + count])
        return []

    def _index(self, ids: Sequence[int], end: int) -> None:
        for size in range(1, min(MAX_MATCH, end) + 1):
            self.ends[tuple(ids[end - size : end])] = end


class NgramDraft:
    """Proposes the most probable token after the longest context that an n-gram model has seen."""

    def __init__(self, model: NgramForCausalLM) -> None:
        self.order = model.config.order
        parts = {
            name: tensor.detach().numpy()
            for name, tensor in model.state_dict(keep_vars=True).items()
        }
        orders = range(2, self.order + 1)
        # Single numbers are read from a memoryview in a third of the time that an array takes.
        self.children = [
            (memoryview(parts[f"first_{k - 1}"]), memoryview(parts[f"tokens_{k}"])) for k in orders
        ]
        self.log_probabilities = [parts[f"log10_probability_{k}"] for k in orders]
        self.fallback = int(parts["log10_probability_1"].argmax())
        self.cache: dict[tuple[int, ...], int] = {}

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        """Propose exactly `count` tokens."""
        text = list(ids[-self.order + 1 :]) if self.order > 1 else []
        for _ in range(count):
            context = tuple(text[-self.order + 1 :]) if self.order > 1 else ()
            if context not in self.cache:
                self.cache[context] = self._find_best(context)
            text.append(self.cache[context])
        return text[len(text) - count :]

    def _find_best(self, context: tuple[int, ...]) -> int:
        for start in range(len(context)):
            row = self._find_row(context[start:])
            if row is None:
                continue
            order = len(context) - start - 1
            first, tokens = self.children[order]
            begin, end = first[row], first[row + 1]
            if end > begin:
                return tokens[begin + int(self.log_probabilities[order][begin:end].argmax())]
        return self.fallback

    def _find_row(self, context: tuple[int, ...]) -> int | None:
        """Find the row of an n-gram among those of its order."""
        row = context[0]
        for token, (first, tokens) in zip(context[1:], self.children, strict=False):
            end = first[row + 1]
            row = bisect.bisect_left(tokens, token, first[row], end)
            if row == end or tokens[row] != token:
                return None
        return row


def make_draft(name: str, tokenizer: PreTrainedTokenizerBase) -> Draft:
    """Make a draft: `prompt` for prompt lookup, or the folder of an n-gram run.

    Raises `RunError` for another rung or another tokenizer.
    """
    if name == "prompt":
        return PromptLookupDraft()
    model, its_tokenizer = load(name)
    if not isinstance(model, NgramForCausalLM):
        raise RunError(
            f"{name} is a {model.config.model_type!r} model: a draft is an n-gram run, or the word "
            "prompt"
        )
    if fingerprint_tokenizer(its_tokenizer) != fingerprint_tokenizer(tokenizer):
        raise RunError(
            f"{name} has another tokenizer: train it with --tokenizer RUN, the folder of the model "
            "that it is to draft for"
        )
    return NgramDraft(model)


def check_draft(decoder: Decoder) -> None:
    """Raise `RunError` for a model whose state cannot be rolled back."""
    if not decoder.model._supports_default_dynamic_cache():
        kind = decoder.model.config.model_type
        raise RunError(
            f"a {kind!r} model cannot take tokens back: a draft needs a gpt2 or llama3 model"
        )


def generate_speculatively(
    decoder: Decoder,
    prompt: Sequence[int],
    sampling: Sampling,
    stop_ids: Container[int],
    draft: Draft,
) -> Iterator[list[int | None]]:
    """Yield what `generate_tokens` yields for one prompt, with fewer passes through the model."""
    generator = torch.Generator(decoder.device).manual_seed(sampling.seed)
    ids = list(prompt)
    logits = decoder.prefill([prompt], sampling.max_new_tokens)
    ids += sample_tokens(logits, sampling, generator).tolist()
    yield [ids[-1]]
    left = sampling.max_new_tokens - 1
    while left and ids[-1] not in stop_ids:
        if decoder.remaining == 0:
            token = sample_tokens(decoder.prefill([ids], left), sampling, generator).tolist()[0]
            ids, left = [*ids, token], left - 1
            yield [token]
            continue
        proposed = draft.propose(ids, min(DRAFT_TOKENS, left - 1, decoder.remaining - 1))
        logits = decoder.decode(torch.tensor([[ids[-1], *proposed]], device=decoder.device))[0]
        sampled = sample_tokens(logits, sampling, generator).tolist()
        accepted = next(
            (i for i, (a, b) in enumerate(zip(sampled, proposed, strict=False)) if a != b),
            len(proposed),
        )
        decoder.rollback(len(proposed) - accepted)
        for token in sampled[: accepted + 1]:
            ids.append(token)
            left -= 1
            yield [token]
            if token in stop_ids:
                return
