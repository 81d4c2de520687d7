"""The learning rate's schedule: warm-up, stable phase, decay, with an end that the clock may move.

A run that must end in time sees how fast the machine is, and again when that changes; its schedule
ends where the run does (warmup-stable-decay; Hägele et al. 2024, section 4).
"""

from collections.abc import Callable
from typing import Any, Self

# The share of the steps that warm up where `warmup_steps` is not set, and of those that decay.
WARMUP_SHARE = 0.05
DECAY_SHARE = 0.5
# A schedule of transformers is made for so many steps, and stretched over the run.
CURVE_STEPS = 10_000


class WSDSchedule:
    """The factor of the learning rate at each step.

    It rises in a line over `warm_up` steps (below 1 a share of the steps), stays at 1, and falls in
    a line to 0 over the second half. `LambdaLR` keeps the attributes in its state, so their names
    are keys of checkpoints.
    """

    def __init__(self, end: int, warm_up: float = WARMUP_SHARE) -> None:
        self.asked = warm_up
        self.warm_up = self._count_warm_up(end)
        self.turn = end - round(end * DECAY_SHARE)
        self.end = end
        self.height = 1.0
        # The step at which the end was last moved, and the share of the run that was done by then.
        self.moved, self.passed = 0, 0.0

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Make the schedule whose `state` a checkpoint holds."""
        schedule = cls(state["end"])
        vars(schedule).update(state)
        return schedule

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the schedule."""
        return dict(vars(self))

    def __call__(self, step: int) -> float:
        """Return the factor for the step after `step` steps."""
        if step < self.warm_up:
            return (step + 1) / (self.warm_up + 1)
        if step < self.turn:
            return self.height
        return self.height * max(0.0, (self.end - step) / max(1, self.end - self.turn))

    def move_end(self, step: int, end: int) -> None:
        """Move the end after `step` steps: stay level until half of the way to it, then decay.

        Where that half is behind, decay from now on.
        """
        turn = end - round(end * DECAY_SHARE)
        self.height = 1.0 if step < turn or step < self.warm_up else self(step)
        self.moved, self.passed = step, self.share_done(step)
        self.warm_up = self._count_warm_up(end)
        self.turn = max(step, turn)
        self.end = end

    def share_done(self, step: int) -> float:
        """Return the share of the way from warm-up to end that is done, which never falls."""
        start = max(self.moved, self.warm_up)
        onward = min(1.0, max(0, step - start) / max(1, self.end - start))
        return self.passed + (1 - self.passed) * onward

    def stretch(self, curve: Callable[[float], float]) -> Callable[[int], float]:
        """Stretch a schedule of `CURVE_STEPS` steps without warm-up over the run, after a warm-up.

        The end of the stretched schedule moves with the end of this one.
        """

        def factor(step: int) -> float:
            if step < self.warm_up:
                return float(step / self.warm_up)
            return float(curve(CURVE_STEPS * self.share_done(step)))

        return factor

    def _count_warm_up(self, end: int) -> int:
        if self.asked >= 1:
            return int(self.asked)
        return max(1, round(end * self.asked)) if self.asked else 0
