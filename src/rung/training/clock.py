"""The time of a run: how much of its minutes is left, and how long steps and evaluations take.

An evaluation here is the pause between two steps in which a checkpoint is written, held-out text is
scored and a sample is drawn. The minutes hold all of a run: training ends when what is left is
needed for the last evaluation and for the final scores, by what they take now and not by what they
took when the run was planned.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

# A run has so many evaluations, or fewer where there is no time for them.
MAX_EVALUATIONS = 5
# Evaluations before the last one take at most this share of the minutes.
EVALUATION_SHARE = 0.1
# Training has at least this share of the minutes, whatever came before it.
MIN_TRAINING_SHARE = 0.25
# The seconds of a step are a mean over the steps in the last such share of the minutes.
RECENT_SHARE = 0.05
# The first steps are slower than the others.
COLD_STEPS = 2
# The attributes that a checkpoint keeps, by their keys in it.
CLOCK_KEYS = {
    "step": "step_seconds",
    "look": "evaluation_seconds",
    "evaluation": "scoring_seconds",
    "looked": "evaluated_seconds",
}


def now() -> float:
    """Return the seconds since no particular moment."""
    return time.perf_counter()


class Clock:
    """The seconds of a run over all its starts, without the time between them and lost steps.

    Its minutes count from `began`, else from now, and end when the run has been scored, which takes
    `scoring_cost` times as long as scoring in an evaluation. Without minutes the clock ends
    nothing. With `times_evaluations` evaluations come as time allows, and not every so many steps.
    """

    def __init__(
        self,
        minutes: float | None = None,
        began: float | None = None,
        scoring_cost: float = 0.0,
        *,
        times_evaluations: bool = False,
    ) -> None:
        self.budget = math.inf if minutes is None else 60 * minutes
        self.scoring_cost = scoring_cost
        self.times_evaluations = times_evaluations
        self.began = now()  # of training, measuring included
        self.deadline = (self.began if began is None else began) + self.budget
        self.earliest_end = -math.inf  # training may always go on until then
        self.step_seconds = 0.0
        self.evaluation_seconds = 0.0  # of the last evaluation
        self.scoring_seconds = 0.0  # of the held-out text in it
        self.evaluated_seconds = 0.0  # of all evaluations
        self.steps = 0  # since the start
        self.marked = self.began

    def resume(self, seconds: float, state: dict[str, float]) -> None:
        """Continue a run after so many seconds, with what `state` returned of its clock."""
        self.began = now() - seconds
        self.deadline = now() + state.get("left", math.inf)
        for key, name in CLOCK_KEYS.items():
            setattr(self, name, state.get(key, 0.0))

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps; `left` is until the minutes are over."""
        state = {key: getattr(self, name) for key, name in CLOCK_KEYS.items()}
        if self.budget < math.inf:
            state["left"] = max(self.deadline, self.earliest_end) - now()
        return state

    def guarantee_training(self) -> None:
        """Give training its least share of the minutes from now on."""
        self.earliest_end = now() + MIN_TRAINING_SHARE * self.budget

    def start_training(self) -> None:
        """Count the seconds of the first step from now."""
        self.marked = now()

    def total_seconds(self) -> float:
        """Return the seconds since the run was begun."""
        return now() - self.began

    def seconds_left(self) -> float:
        """Return the seconds until training must end, which are infinite without minutes."""
        scoring = self.evaluation_seconds + self.scoring_cost * self.scoring_seconds
        return max(self.deadline - scoring, self.earliest_end) - now()

    def has_time_to_evaluate(self) -> bool:
        """Whether another evaluation stays within the share of all of them."""
        seconds = self.evaluated_seconds + self.evaluation_seconds
        return seconds <= EVALUATION_SHARE * self.budget

    def has_time_to_save(self) -> bool:
        """Whether the evaluations so far stay within their share."""
        return self.evaluated_seconds <= EVALUATION_SHARE * self.budget

    def count_steps_left(self, evaluations: int) -> float:
        """Count the steps until training must end, with so many evaluations if time allows."""
        allowed = max(0.0, EVALUATION_SHARE * self.budget - self.evaluated_seconds)
        evaluating = min(evaluations * self.evaluation_seconds, allowed)
        return (self.seconds_left() - evaluating) / max(self.step_seconds, 1e-9)

    def count_step(self) -> None:
        """End a step now, and average its seconds with those of recent steps."""
        took, self.marked = now() - self.marked, now()
        self.steps += 1
        recent = RECENT_SHARE * min(self.budget, 300.0)
        if not self.step_seconds:
            self.step_seconds = took
        elif self.steps <= COLD_STEPS and took < recent:
            self.step_seconds = min(self.step_seconds, took)
        else:
            # While the steps are few this is their mean.
            few = 1 / max(1, self.steps - COLD_STEPS)
            weight = max(few, 1 - math.exp(-took / recent))
            self.step_seconds += weight * (took - self.step_seconds)

    @contextmanager
    def evaluating(self, *, with_evaluation: bool) -> Iterator[None]:
        """Count the time inside as a pause between two steps, and as part of neither.

        Without an evaluation the pause is for a log line or a checkpoint alone.
        """
        began = now()
        yield
        self.marked = now()
        self.evaluated_seconds += self.marked - began
        if with_evaluation:
            self.evaluation_seconds = self.marked - began

    def time_scoring(self, evaluate: Callable[[Any], T]) -> Callable[[Any], T]:
        """Wrap `evaluate` so that the clock knows how long it takes."""

        def timed(model: Any) -> T:
            began = now()
            value = evaluate(model)
            self.scoring_seconds = now() - began
            return value

        return timed
