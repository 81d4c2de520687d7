"""Reasons to doubt the scores of a run: too few training steps, or a machine that was busy."""

import math
from collections.abc import Sequence
from typing import Any

from rung.ladder import is_counting

# The warm-up takes a twentieth of the steps, which is less than one step below this number.
MIN_TRAINING_STEPS = 20


def explain_doubtful_score(record: dict[str, Any]) -> str | None:
    """Return why a run's scores say nothing about its rung, or None where they do.

    The reason is too few training steps, for want of time or of text. A run that goes on from
    another one is not doubted, because its base was trained before.
    """
    steps = (record.get("training") or {}).get("steps") or 0
    if record.get("base") or not 0 < steps < MIN_TRAINING_STEPS:
        return None
    only = f"{steps} training step{'s' if steps > 1 else ''} only"
    if lacks_text(record):
        return f"{only}: the text is too small to learn anything from"
    return f"{only}: too few to have learned anything"


def lacks_text(record: dict[str, Any]) -> bool:
    """Whether a run ended before its minutes, because its text was too small for more of them."""
    return bool((record.get("plan") or {}).get("ends_early"))


def explain_doubtful_scores(records: Sequence[dict[str, Any]]) -> list[str | None]:
    """Return for each run why its scores say nothing about its rung, or None.

    A trained run that needs more bits than a bigram for the same text is doubted too.
    """
    pairs = [_read_cost(record) for record in records if record.get("rung") == "bigram"]

    def compare(record: dict[str, Any]) -> str | None:
        text, bits = _read_cost(record)
        is_worse = not is_counting(record.get("rung", "")) and any(
            text == other and bits > few for other, few in pairs
        )
        cause = "the text is too small" if lacks_text(record) else "trained for too short a time"
        return f"worse than counting pairs: {cause}" if is_worse else None

    return [explain_doubtful_score(record) or compare(record) for record in records]


def describe_busy_machine(record: dict[str, Any]) -> str | None:
    """Return which share of the cores a run got on a busy machine, or None if it was not busy."""
    training = record.get("training") or {}
    if not training.get("was_busy"):
        return None
    cores = training.get("cores", 1)
    share = training.get("cpu_share", 0)
    return (
        f"the machine was busy: this run got {share:.0%} of {cores} core{'s' if cores > 1 else ''}"
    )


def _read_cost(record: dict[str, Any]) -> tuple[Any, float]:
    """Return the identity of the scored text, and its bits per byte.

    The bits are NaN where there is no score, and infinite where the score is null.
    """
    score = (record.get("scores") or {}).get("test") or {"bits_per_byte": math.nan}
    text = ((record.get("corpus") or {}).get("fingerprint"), score.get("bytes"))
    bits = score.get("bits_per_byte")
    return text, math.inf if bits is None else bits
