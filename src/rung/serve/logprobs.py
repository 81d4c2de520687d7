"""What tokens cost: those that are chosen, and those of a prompt, a part of it at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rung.evaluation.likelihood import sliding_windows
from rung.models.base import CausalModel, StatefulModel, check_finite
from rung.models.kv_cache import KVCache

AT_ONCE = 256  # tokens of a prompt, between two steps of the texts
LEAST_LOG = -9999.0  # stands for the logarithm of 0, which JSON has not


@dataclass(frozen=True)
class Choice:
    """A token that was chosen, its log-probability as the model gives it, those of the likeliest,
    and what the token adds to the text: nothing where it is a part of a character that others
    finish.
    """

    token: int
    log: float | None  # None where it follows nothing
    likeliest: list[tuple[int, float]]
    text: str = ""


def weigh(logits: Tensor, token: int, likeliest: int) -> Choice:
    """The token's log-probability before temperature and sifting, and the likeliest tokens with
    theirs.
    """
    return _weigh_all(logits[None], [token], likeliest)[0]


def weigh_prompt(model: CausalModel, ids: list[int], likeliest: int) -> Iterator[list[Choice]]:
    """What each of the ids but the first costs after those before it, read as a score is: in
    windows if need be.
    """
    predictions = len(ids) - 1
    window = model.context_length
    for first, end, done in (
        sliding_windows(predictions, window) if window else [(0, predictions, 0)]
    ):
        state: Any = None if isinstance(model, StatefulModel) else KVCache(end - first)
        for start in range(first, end, AT_ONCE):
            stop = min(start + AT_ONCE, end)
            new = max(1, stop - max(start, done))
            rows = torch.tensor([ids[start:stop]], device=model.device)
            output = model(rows, past_key_values=state, use_cache=True, logits_to_keep=new)
            state = output.past_key_values
            check_finite(output.logits)
            yield (
                _weigh_all(output.logits[0], ids[stop + 1 - new : stop + 1], likeliest)
                if stop > done
                else []
            )


def _weigh_all(logits: Tensor, tokens: list[int], likeliest: int) -> list[Choice]:
    logs = logits.float().log_softmax(-1).clamp(min=LEAST_LOG)
    best = logs.topk(min(likeliest, logs.shape[-1]))
    mine = logs.gather(-1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0]
    rows = zip(tokens, mine.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Choice(token, log, list(zip(names, values, strict=True)))
        for token, log, names, values in rows
    ]
