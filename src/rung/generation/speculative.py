"""Guess several tokens cheaply, and let the model check them all at once (Leviathan et al. 2023).

A guess is kept while it is the token that the model chooses there, so what is written has the
model's own distribution, and greedily its very tokens. Guesses come from an n-gram model, or from
what was written before.
"""

import bisect
from collections.abc import Container, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from transformers import PreTrainedTokenizerBase

from rung.data.tokenizer import fingerprint_tokenizer
from rung.errors import RunError
from rung.generation.decoder import Decoder
from rung.generation.sampling import Sampling, choose
from rung.models import load
from rung.models.base import StatefulModel
from rung.models.ngram.model import NgramForCausalLM

# Tokens ahead: with the one that is certain, as many as are checked at nearly the price of one.
GUESSES = 3
LONGEST_MATCH = 3  # tokens that must have stood before for what followed them to be guessed


@runtime_checkable
class Draft(Protocol):
    """Guesses what comes next."""

    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that may follow `ids`."""
        ...


class PromptDraft:
    """What followed the last tokens when they stood in the text before (Saxena 2023)."""

    def __init__(self) -> None:
        self.ends: dict[tuple[int, ...], int] = {}
        self.read = 0

    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        """Where the longest match stood last; nothing where there is none."""
        for end in range(
            max(self.read, 1), len(ids)
        ):  # all but the whole text, which is what is looked for
            self._note(ids, end)
        self.read = len(ids)
        for size in range(min(LONGEST_MATCH, len(ids)), 0, -1):
            at = self.ends.get(tuple(ids[-size:]))
            if at is not None:
                return list(ids[at : at + count])
        return []

    def _note(self, ids: Sequence[int], end: int) -> None:
        for size in range(1, min(LONGEST_MATCH, end) + 1):
            self.ends[tuple(ids[end - size : end])] = end


class NgramDraft:
    """The likeliest token after the longest context that an n-gram model has seen."""

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
        self.likely = [parts[f"log10_probability_{k}"] for k in orders]
        self.fallback = int(parts["log10_probability_1"].argmax())
        self.known: dict[tuple[int, ...], int] = {}

    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        """Always `count` tokens."""
        text = list(ids[-self.order + 1 :]) if self.order > 1 else []
        for _ in range(count):
            context = tuple(text[-self.order + 1 :]) if self.order > 1 else ()
            if context not in self.known:
                self.known[context] = self._likeliest(context)
            text.append(self.known[context])
        return text[len(text) - count :]

    def _likeliest(self, context: tuple[int, ...]) -> int:
        for start in range(len(context)):
            row = self._find(context[start:])
            if row is None:
                continue
            first, tokens = self.children[len(context) - start - 1]
            begin, end = first[row], first[row + 1]
            if end > begin:
                return tokens[
                    begin + int(self.likely[len(context) - start - 1][begin:end].argmax())
                ]
        return self.fallback

    def _find(self, context: tuple[int, ...]) -> int | None:
        """The row of an n-gram among those of its order."""
        row = context[0]
        for token, (first, tokens) in zip(context[1:], self.children, strict=False):
            end = first[row + 1]
            row = bisect.bisect_left(tokens, token, first[row], end)
            if row == end or tokens[row] != token:
                return None
        return row


def make_draft(name: str, tokenizer: PreTrainedTokenizerBase) -> Draft:
    """`prompt`, or the folder of an n-gram run with the same tokenizer.

    Raises `RunError` for another rung or another tokenizer.
    """
    if name == "prompt":
        return PromptDraft()
    model, its_tokenizer = load(name)
    if not isinstance(model, NgramForCausalLM):
        raise RunError(
            f"{name} is a {model.config.model_type!r} model: a draft is an n-gram run, or the word "
            f"prompt"
        )
    if fingerprint_tokenizer(its_tokenizer) != fingerprint_tokenizer(tokenizer):
        raise RunError(
            f"{name} has another tokenizer: train it with --tokenizer RUN, the folder it is to "
            f"guess for"
        )
    return NgramDraft(model)


def check_draft(decoder: Decoder) -> None:
    """Raise `RunError` for a model whose state cannot take tokens back."""
    if isinstance(decoder.model, StatefulModel):
        kind = decoder.model.config.model_type
        raise RunError(
            f"a {kind!r} model carries a state that takes no token back: a draft needs gpt2 or "
            f"llama3"
        )


def write_guessed(
    decoder: Decoder, prompt: Sequence[int], sampling: Sampling, ends: Container[int], draft: Draft
) -> Iterator[list[int | None]]:
    """What `write_tokens` gives for one prompt, several tokens for each pass through the model."""
    generator = torch.Generator(decoder.device).manual_seed(sampling.seed)
    ids = list(prompt)
    ids += choose(decoder.read([prompt], sampling.max_new_tokens), sampling, generator).tolist()
    yield [ids[-1]]
    left = sampling.max_new_tokens - 1
    while left and ids[-1] not in ends:
        if decoder.left == 0:
            token = choose(decoder.read([ids], left), sampling, generator).tolist()[0]
            ids, left = [*ids, token], left - 1
            yield [token]
            continue
        guesses = draft.guess(ids, min(GUESSES, left - 1, decoder.left - 1))
        logits = decoder.append(torch.tensor([[ids[-1], *guesses]], device=decoder.device))[0]
        chosen = choose(logits, sampling, generator).tolist()
        right = next(
            (i for i, (a, b) in enumerate(zip(chosen, guesses, strict=False)) if a != b),
            len(guesses),
        )
        decoder.forget(len(guesses) - right)
        for token in chosen[: right + 1]:
            ids.append(token)
            left -= 1
            yield [token]
            if token in ends:
                return
