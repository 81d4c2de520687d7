"""Choose how many threads share a step, by timing steps with fewer and with more of them.

The threads of a step wait for one another many times in it. Where one of them waits for a core, as
it does beside a busy process, the step may take a hundred times as long. Whether a core is free
changes while a process runs, and what it is worth depends on the model and the processor. So no
bound is set: now and then some steps have another number of threads, and the faster number is kept.
More threads are tried only where cores are free, for a single step that waits for one may take a
second. What a step computes is the same with any number.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

# A trial lasts several time slices of the system's scheduler, so that waits for a core count.
TRIAL_SECONDS, TRIAL_STEPS = 0.02, 2
# After a trial that was no faster, steps take so many times as long until the next one.
TRIAL_WAIT = 32
# Steps of so many times the work are tried apart.
ALIKE = math.sqrt(2)
MIN_FREE = 0.2  # of a core, for a trial of another thread; a busy process leaves none
MIN_GAIN = 1.1  # of more threads, which take cores that others could use


class ThreadTrials:
    """Chooses the number of threads of steps, apart for steps of different sizes.

    The size of a step is its `work`, a number of products. `count_free` tells how many cores are
    free.
    """

    def __init__(self, count_free: Callable[[], float]) -> None:
        self.count_free = count_free
        self.sizes: dict[int, _Size] = {}

    def choose(self, work: int, first: int, most: int) -> int:
        """Choose the number of threads for a step of so much work.

        It is `first` to begin with, or that of steps of the next size.
        """
        order = _find_order(work)
        if order not in self.sizes:
            near = self.sizes.get(order - 1) or self.sizes.get(order + 1)
            self.sizes[order] = _Size(near.threads if near else first)
        size = self.sizes[order]
        size.most = most
        return min(size.tried or size.threads, most)

    def record(self, work: int, seconds: float) -> None:
        """Record how long the step took for which a number was chosen last."""
        size = self.sizes[_find_order(work)]
        if size.tried is None:
            size.usual.add(work, seconds)
            if size.usual.seconds >= size.until_trial:
                size.begin_trial(self.count_free())
        else:
            size.trial.add(work, seconds)
            if size.trial.seconds >= TRIAL_SECONDS and (
                size.trial.steps >= TRIAL_STEPS or size.gain < 1 / 2
            ):
                size.end_trial()


def _find_order(work: int) -> int:
    """Number the sizes of steps: those of one number take about as much work."""
    return round(math.log(work, ALIKE))


@dataclass
class _Sample:
    """Steps of one number of threads."""

    steps: int = 0
    work: int = 0
    seconds: float = 0.0

    def add(self, work: int, seconds: float) -> None:
        self.steps += 1
        self.work += work
        self.seconds += seconds


@dataclass
class _Size:
    """Steps of about as much work: their number of threads, and the trial of another one."""

    threads: int
    most: int = 1
    tried: int | None = None
    trials: int = 0
    until_trial: float = TRIAL_SECONDS
    usual: _Sample = field(default_factory=_Sample)
    trial: _Sample = field(default_factory=_Sample)

    @property
    def gain(self) -> float:
        """How many times as fast the steps of the trial were."""
        usual, trial = self.usual, self.trial
        return usual.seconds * trial.work / (usual.work * max(trial.seconds, 1e-9))

    def begin_trial(self, free: float) -> None:
        """Try the next of the neighbours, the half and the double for which there are cores."""
        now = min(self.threads, self.most)
        most = min(self.most, now + math.ceil(min(free, self.most) - MIN_FREE))
        numbers = (now - 1, min(2 * now, most), now // 2, now + 1)
        others = [n for n in numbers if 1 <= n <= most and n != now]
        if others:
            self.trials += 1
            self.tried, self.trial = others[self.trials % len(others)], _Sample()
        else:
            self.usual = _Sample()

    def end_trial(self) -> None:
        """Keep the faster number. One that is new is soon compared with its neighbours."""
        assert self.tried is not None
        is_faster = self.gain > (MIN_GAIN if self.tried > self.threads else 1)
        self.until_trial = TRIAL_SECONDS if is_faster else TRIAL_WAIT * self.trial.seconds
        self.threads = self.tried if is_faster else self.threads
        self.tried, self.usual = None, _Sample()
