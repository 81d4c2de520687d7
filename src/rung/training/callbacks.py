"""The functions that training calls: what evaluates, what samples, and what shows its progress."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rung.models.base import CausalModel
from rung.progress import OnProgress, ignore_progress


@dataclass(frozen=True, kw_only=True)
class TrainingCallbacks:
    """The functions that training calls on the main process.

    `scoring_cost` is the work that follows training, as a multiple of the work of `evaluate`.
    """

    evaluate: Callable[[CausalModel], float]  # bits per byte on held-out text
    sample: Callable[[CausalModel], str]
    on_progress: OnProgress
    scoring_cost: float = 0.0


def _refuse(model: CausalModel) -> Any:
    raise AssertionError("only the main process has text to score and to sample from")


# The callbacks of every process but the main one.
NO_CALLBACKS = TrainingCallbacks(evaluate=_refuse, sample=_refuse, on_progress=ignore_progress)
