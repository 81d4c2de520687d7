"""Progress: how far a piece of work is, told to the function that draws it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

# Stages that take no time: their note states a fact.
FACTS = ("read", "planned", "noted")
# Stages that a run ends with; the note of one that failed gives the reason.
OUTCOMES = ("done", "failed", "stopped")


@dataclass(frozen=True)
class Progress:
    """How far a stage of the work is.

    `total`, `seconds_left` and the figures of training are None where they are unknown.
    """

    stage: str
    done: int = 0
    total: int | None = None
    note: str = ""
    seconds_left: float | None = None
    run: str = ""  # which run, where a command makes several
    loss: float | None = None
    bits_per_byte: float | None = None
    tokens_per_second: float | None = None


OnProgress = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Draw nothing."""


def for_run(run: str, on_progress: OnProgress) -> OnProgress:
    """Name the run in all progress that is reported."""
    return lambda progress: on_progress(replace(progress, run=run))


class ProgressMeter:
    """Reports how far a stage is, in items, and how fast, in tokens per second."""

    def __init__(self, on_progress: OnProgress, stage: str, total: int | None = None) -> None:
        self.on_progress, self.stage, self.total = on_progress, stage, total
        self.done = self.tokens = 0
        self.began = time.perf_counter()

    def step(self, tokens: int, items: int = 0) -> None:
        """Count so many more tokens as done, and so many items with them."""
        self.tokens += tokens
        self.done += items
        rate = self.tokens / max(time.perf_counter() - self.began, 1e-9)
        self.on_progress(
            Progress(
                self.stage,
                self.done,
                self.total,
                note=f"{rate:,.0f} tokens/s",
                tokens_per_second=rate,
            )
        )
