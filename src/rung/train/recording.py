"""What training shows and writes as it goes, and how it is stopped: by the clock, by Ctrl-C, by a loss that is none."""

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rung import ranks, runs
from rung.errors import RunError
from rung.models import CausalModel
from rung.train.optimizer import Pace

LAST_LOOK = 0.9  # of the way, when the end is set by the clock for good
ROOM = 4  # times as many steps as planned, if the machine turns out to be faster


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training is: for whoever draws a bar."""

    step: int
    steps: int
    loss: float | None
    bits_per_byte: float | None
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What training calls without knowing what it is."""

    evaluate: Callable[[CausalModel], float]  # bits per byte on held-out text
    sample: Callable[[CausalModel], str]
    progress: Callable[[Progress], None]


class Clock:
    """The seconds of a run over all its starts; those between them, and those whose steps were lost, left out.

    Twice it is looked at to set the end by the `minutes`: half way, and shortly before. `looks` are still to come.
    """

    def __init__(
        self, began: float, minutes: float | None, training_before: float = 0.0, looks: int | None = None
    ) -> None:
        self.began = began
        self.deadline = began + (minutes or 0) * 60
        self.looks = looks if looks is not None else 2 if minutes else 0
        self.training_before = training_before
        self.training_began = began

    def start_training(self) -> None:
        """The loop begins here."""
        self.training_began = time.perf_counter() - self.training_before

    def total(self) -> float:
        """Seconds since the run was begun."""
        return time.perf_counter() - self.began

    def training(self) -> float:
        """Seconds in the training loop."""
        return time.perf_counter() - self.training_began


class Recorder(TrainerCallback):
    """Writes metrics and samples, moves the bar, keeps to the deadline, and stops when asked to."""

    pace: Pace

    def __init__(self, folder: Path, hooks: Hooks, tokens_a_step: int, clock: Clock) -> None:
        self.folder = folder
        self.hooks = hooks
        self.tokens_a_step = tokens_a_step
        self.clock = clock
        self.loss: float | None = None
        self.bits_per_byte: float | None = None
        self.interrupted = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock; a run that was killed behind its last step has none left."""
        self.clock.start_training()
        state.max_steps = self.pace.end
        control.should_training_stop = state.global_step >= self.pace.end

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar; after an interrupt, save and stop. All processes stop, or set the end, at the same step."""
        asked, remaining = ranks.agree(int(self.interrupted), self._find_remaining(state.global_step, args.max_steps))
        if asked:
            self.interrupted = control.should_save = control.should_training_stop = True
        if remaining:
            self.pace.end_after(state.global_step, remaining)
            state.max_steps = self.pace.end
            self.clock.looks -= 1
        rate = state.global_step * self.tokens_a_step / self.clock.training()
        self.hooks.progress(
            Progress(
                step=state.global_step,
                steps=state.max_steps,
                loss=self.loss,
                bits_per_byte=self.bits_per_byte,
                tokens_per_second=rate,
            )
        )

    def _find_remaining(self, done: int, most: int) -> int:
        """At half time or half way, and again near the end, the steps to go by the pace so far, evaluations and all.

        0 while nothing is to be changed; the main process looks at the clock for all.
        """
        if not self.clock.looks or not ranks.is_main():
            return 0
        took, left = self.clock.training(), self.clock.deadline - time.perf_counter()
        if self.clock.looks == 2:
            soon = done >= self.pace.turn or took >= left
        else:
            soon = done >= LAST_LOOK * self.pace.end or (1 - LAST_LOOK) * took >= LAST_LOOK * left
        return min(max(1, int(left * done / took)), most - done) if soon else 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write what was logged; a loss that is no number ends the run."""
        names = {"eval_bits_per_byte": "bits_per_byte"}
        kept = ("loss", "learning_rate", "grad_norm", "eval_bits_per_byte")
        line = {names.get(key, key): value for key, value in (logs or {}).items() if key in kept}
        if not line:
            return
        self.loss = line.get("loss", self.loss)
        self.bits_per_byte = line.get("bits_per_byte", self.bits_per_byte)
        if not math.isfinite(line.get("loss", 0.0)):
            raise diverged(f"the loss is {line['loss']}", state.global_step, line["learning_rate"], args)
        tokens = state.global_step * self.tokens_a_step
        if ranks.is_main():
            runs.append_metrics(self.folder, {"step": state.global_step, "tokens": tokens, **line})

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep what the model writes by now."""
        if not ranks.is_main():
            return
        text = self.hooks.sample(kwargs["model"]).strip()
        quoted = "\n".join(f"> {line}".rstrip() for line in text.splitlines())
        with (self.folder / runs.SAMPLES).open("a", encoding="utf-8") as file:
            file.write(f"## Step {state.global_step}: {self.bits_per_byte:.3f} bits per byte\n\n{quoted}\n\n")


def diverged(what: str, step: int, rate: float, arguments: TrainingArguments) -> RunError:
    """What is wrong, where, and what to try."""
    return RunError(
        f"{what} at step {step} (learning rate {rate:.2g}): "
        f"try --set train.learning_rate={arguments.learning_rate / 3:.1g}; the last checkpoint is kept"
    )


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Whatever is drawn inside, training goes on with the random numbers that it would have had."""
    python, array = random.getstate(), numpy.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)


@contextmanager
def interrupt_politely(recorder: Recorder) -> Iterator[None]:
    """Ctrl-C finishes the step, saves and stops; a second one stops at once.

    Not under `torchrun`: there it may come twice, from the terminal and from the launcher, which ends the
    processes itself where they take too long.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask_to_stop(signum: int, frame: Any) -> None:
        if recorder.interrupted and ranks.count() == 1:
            raise KeyboardInterrupt
        recorder.interrupted = True

    before = signal.signal(signal.SIGINT, ask_to_stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
