"""Log-probabilities of tokens: of generated ones, and of a prompt's, chunk by chunk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rung.evaluation.likelihood import sliding_windows
from rung.models.base import CausalModel, check_finite
from rung.models.kv_cache import KVCache

SCORING_CHUNK = 256  # tokens of a prompt that are scored between two steps of the batch
MIN_LOGPROB = -9999.0  # in place of minus infinity, which JSON does not have


@dataclass(frozen=True)
class ScoredToken:
    """A token with its log-probability, and the most probable tokens with theirs.

    `text` is what the token adds to the text: nothing where it is a part of a character that later
    tokens finish.
    """

    token: int
    logprob: float | None  # None for a token that follows nothing
    top_logprobs: list[tuple[int, float]]
    text: str = ""


def score_token(logits: Tensor, token: int, top_logprobs: int) -> ScoredToken:
    """Score a token by logits (V), before temperature, top-k and top-p."""
    return _score_rows(logits[None], [token], top_logprobs)[0]


def score_prompt(
    model: CausalModel,
    ids: list[int],
    top_logprobs: int,
    limit: Callable[[], int] = lambda: SCORING_CHUNK,
) -> Iterator[list[ScoredToken]]:
    """Score each id but the first, a chunk at a time, none of more tokens than `limit` returns.

    A prompt longer than the context window is read in sliding windows, as by `rung score`.
    """
    predictions = len(ids) - 1
    window = model.context_length
    windows = sliding_windows(predictions, window) if window else [(0, predictions, 0)]
    for first, end, done in windows:
        state: Any = KVCache(end - first) if model._supports_default_dynamic_cache() else None
        start = first
        while start < end:
            chunk = min(SCORING_CHUNK, limit()) if model.carries_state else end - first
            stop = min(start + chunk, end)
            new = max(1, stop - max(start, done))
            rows = torch.tensor([ids[start:stop]], device=model.device)
            output = model(rows, past_key_values=state, use_cache=True, logits_to_keep=new)
            state = output.past_key_values
            check_finite(output.logits)
            if stop > done:
                yield _score_rows(output.logits[0], ids[stop + 1 - new : stop + 1], top_logprobs)
            else:
                yield []
            start = stop


def _score_rows(logits: Tensor, tokens: list[int], top_logprobs: int) -> list[ScoredToken]:
    logprobs = logits.float().log_softmax(-1).clamp(min=MIN_LOGPROB)
    top = logprobs.topk(min(top_logprobs, logprobs.shape[-1]))
    mine = logprobs.gather(-1, torch.tensor(tokens, device=logprobs.device)[:, None])[:, 0]
    rows = zip(tokens, mine.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        ScoredToken(token, logprob, list(zip(others, values, strict=True)))
        for token, logprob, others, values in rows
    ]
