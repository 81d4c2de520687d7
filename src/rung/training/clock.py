"""The time of a run: how much of its minutes is left, what a step and a look at the model take,
what comes after.

A look is a checkpoint, an evaluation and a sample. The minutes hold all of it: training ends when
what is left is needed for the last look and for scoring, by what they take now and not by what they
took when the run was planned.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

EVALUATIONS = 5  # and as many checkpoints, in a run, where there is time for them
LOOKING = 0.1  # of the minutes, at the most, goes into looks before the last one
LEAST = 0.25  # of the minutes is for training, whatever what came before it took
LATELY = 0.05  # of the minutes: a step takes what it took in so much of them
COLD = 2  # first steps, which are slower than the others


def now() -> float:
    """Seconds, from no particular moment."""
    return time.perf_counter()


class Clock:
    """The seconds of a run over all its starts; those between them, and those whose steps were
    lost, left out.

    Its minutes count from `began`, else from now, and end when the run has been scored, which is
    `scoring` times the work of an evaluation. Without minutes nothing ends by the clock.
    """

    def __init__(
        self, minutes: float | None = None, began: float | None = None, scoring: float = 0.0
    ) -> None:
        self.budget = math.inf if minutes is None else 60 * minutes
        self.scoring = scoring
        self.began = now()  # of training, measuring included
        self.deadline = (self.began if began is None else began) + self.budget
        self.least = -math.inf  # training may go on until then
        self.step = self.look = self.evaluation = 0.0  # seconds of the last ones
        self.looked = 0.0  # seconds of all looks
        self.steps = 0  # since the start
        self.marked = self.began

    def go_on(self, seconds: float, kept: dict[str, float]) -> None:
        """Go on where a run stood after so many seconds, with what `keep` had kept of it."""
        self.began = now() - seconds
        self.deadline = now() + kept.pop("left", math.inf)
        vars(self).update(kept)

    def keep(self) -> dict[str, float]:
        """What a run that goes on has to know; `left` is until its minutes are over."""
        kept = {name: getattr(self, name) for name in ("step", "look", "evaluation", "looked")}
        return (
            kept
            if self.budget == math.inf
            else kept | {"left": max(self.deadline, self.least) - now()}
        )

    def grant_least(self) -> None:
        """Let training have its least part of the minutes from now on."""
        self.least = now() + LEAST * self.budget

    def start_training(self) -> None:
        """The loop begins here."""
        self.marked = now()

    def total(self) -> float:
        """Seconds since the run was begun."""
        return now() - self.began

    def left(self) -> float:
        """Seconds until training must end; infinitely many without minutes."""
        return max(self.deadline - self.look - self.scoring * self.evaluation, self.least) - now()

    def can_look(self) -> bool:
        """Whether another look keeps within what all may take."""
        return self.looked + self.look <= LOOKING * self.budget

    def find_steps_left(self, looks: int) -> float:
        """Steps until training must end, with as many looks on the way as there is time for."""
        looking = min(looks * self.look, max(0.0, LOOKING * self.budget - self.looked))
        return (self.left() - looking) / max(self.step, 1e-9)

    def count_step(self) -> None:
        """A step ends here."""
        took, self.marked = now() - self.marked, now()
        self.steps += 1
        lately = LATELY * min(self.budget, 300.0)
        if not self.step:
            self.step = took
        elif self.steps <= COLD and took < lately:
            self.step = min(self.step, took)
        else:
            few = 1 / max(1, self.steps - COLD)  # their mean, while they are few
            self.step += max(few, 1 - math.exp(-took / lately)) * (took - self.step)

    @contextmanager
    def looking(self, *, with_evaluation: bool) -> Iterator[None]:
        """Between two steps: what is logged, saved and evaluated there is part of neither."""
        began = now()
        yield
        self.marked = now()
        self.looked += self.marked - began
        if with_evaluation:
            self.look = self.marked - began

    def timing(self, evaluate: Callable[[Any], T]) -> Callable[[Any], T]:
        """`evaluate`, its seconds noted."""

        def timed(model: Any) -> T:
            began = now()
            value = evaluate(model)
            self.evaluation = now() - began
            return value

        return timed
