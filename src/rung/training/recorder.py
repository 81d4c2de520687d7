"""The callback that records a run: metrics, samples and progress, and when it ends and evaluates.

The clock, Ctrl-C and a loss that is no number end a run.
"""

import math
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rung import distributed, runs
from rung.device import CoreWatch, avoid_busy_cores, count_cores
from rung.errors import RunError
from rung.progress import Progress
from rung.training.callbacks import TrainingCallbacks
from rung.training.clock import MAX_EVALUATIONS, Clock
from rung.training.cpu_usage import CpuMeter
from rung.training.schedule import WSDSchedule

# The end of a run is moved where it is off by more than so much of the steps to come.
END_TOLERANCE = 0.1
# Seconds between two looks at whether other processes came or left; twice as many after each one
# that changed nothing, up to the most.
LOOK_SECONDS, MOST_LOOK_SECONDS = 1.0, 30.0
# With less of the time in which they could have run, threads delay each other: beside one busy
# process two of them, which then have 0.67 to 0.75 of it, learned a ninth as much as one does.
CROWDED_SHARE = 0.9
# As much of a core that nobody used is taken.
IDLE_CORE = 0.5
# What a pause between two steps is for.
SAVE, SAVE_AND_EVALUATE = 1, 2


class Recorder(TrainerCallback):
    """Records a run, keeps it to its deadline, and stops it when asked to.

    A step reads `tokens_per_step` tokens. `extra_tokens` were read beyond that, by steps with more
    rows before the run was resumed.
    """

    def __init__(
        self,
        folder: Path,
        callbacks: TrainingCallbacks,
        clock: Clock,
        schedule: WSDSchedule,
        tokens_per_step: float,
        extra_tokens: float = 0.0,
    ) -> None:
        self.folder = folder
        self.callbacks = callbacks
        self.clock = clock
        self.schedule = schedule
        self.tokens_per_step = tokens_per_step
        self.extra_tokens = extra_tokens
        self.evaluated_step = 0
        self.cpu = CpuMeter()
        self.recent_cpu = CpuMeter()  # since the last look at the cores
        self.cores, self.looked, self.look_seconds = CoreWatch(), -math.inf, LOOK_SECONDS
        self.loss: float | None = None
        self.bits_per_byte: float | None = None
        self.interrupted = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock. A run that was killed after its last step has none left."""
        self.clock.start_training()
        self.cpu.start()
        self.recent_cpu.start()
        self.evaluated_step = state.global_step
        state.max_steps = self.schedule.end
        control.should_training_stop = state.global_step >= self.schedule.end

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Report progress, move the end, and after an interrupt save and stop.

        All processes stop, or move the end, at the same step.
        """
        self.clock.count_step()
        if self.clock.budget < math.inf and time.monotonic() - self.looked >= self.look_seconds:
            self._adjust_threads()
        done = state.global_step
        wanted = (0, 0)
        if distributed.is_main():
            wanted = (self._find_end(done, args.max_steps), self._choose_pause(done))
        asked, end, pause = distributed.all_reduce_max(int(self.interrupted), *wanted)
        if end:
            # This step was the last one until now, so its evaluation is put off.
            if state.max_steps <= done < end and self.clock.times_evaluations:
                control.should_evaluate = control.should_save = False
            self.schedule.move_end(done, end)
            state.max_steps = self.schedule.end
            control.should_training_stop = done >= end
        if pause or (self.clock.budget < math.inf and done >= self.schedule.end):
            self._ask_for_evaluation(args, control, done, with_evaluation=pause != SAVE)
        if asked:
            self.interrupted = control.should_save = control.should_training_stop = True
        self._report(done, state.max_steps)

    def _report(self, done: int, steps: int) -> None:
        seconds = (steps - done) * self.clock.step_seconds
        self.callbacks.on_progress(
            Progress(
                stage="training",
                done=done,
                total=steps,
                loss=self.loss,
                bits_per_byte=self.bits_per_byte,
                tokens_per_second=self.tokens_per_step / max(self.clock.step_seconds, 1e-9),
                seconds_left=min(self.clock.seconds_left(), seconds),
            )
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Measure the share of the CPU that training got."""
        self.cpu.stop()

    def _find_end(self, done: int, most: int) -> int:
        """Find the last step by the time that is left, or 0 to leave it as it is."""
        if self.clock.budget == math.inf:
            return 0
        if self.clock.seconds_left() < self.clock.step_seconds / 2:
            return done
        evaluations = max(0, self.schedule.end - done - 1) * MAX_EVALUATIONS // self.schedule.end
        left = min(max(1, int(self.clock.count_steps_left(evaluations))), most - done)
        # The learning rate has fallen to 0: going on pays where the plan was far off.
        if done >= self.schedule.end:
            return done + left if left > done else 0
        is_off = abs(done + left - self.schedule.end) > max(1, END_TOLERANCE * left)
        return done + left if is_off else 0

    def _choose_pause(self, done: int) -> int:
        """Choose what to pause for after a step: nothing (0), to save, or to evaluate as well.

        A pause is due a fifth of the run after the last one, unless the end is near.
        """
        every = self.schedule.end / MAX_EVALUATIONS
        due = (
            self.clock.times_evaluations
            and done - self.evaluated_step >= every
            and self.schedule.end - done > every / 2
        )
        if not due or not self.clock.has_time_to_save():
            return 0
        return SAVE_AND_EVALUATE if self.clock.has_time_to_evaluate() else SAVE

    def _ask_for_evaluation(
        self, args: TrainingArguments, control: TrainerControl, done: int, *, with_evaluation: bool
    ) -> None:
        """Log, save and evaluate, unless the arguments say that it is never done."""
        self.evaluated_step = done
        control.should_log = control.should_log or args.logging_strategy == "steps"
        control.should_save = control.should_save or args.save_strategy == "steps"
        evaluates = with_evaluation and args.eval_strategy == "steps" and args.eval_delay <= done
        control.should_evaluate = control.should_evaluate or evaluates

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write what was logged. Raises `RunError` for a loss that is no number."""
        names = {"eval_bits_per_byte": "bits_per_byte"}
        kept = ("loss", "learning_rate", "grad_norm", "eval_bits_per_byte")
        line = {names.get(key, key): value for key, value in (logs or {}).items() if key in kept}
        if not line:
            return
        self.loss = line.get("loss", self.loss)
        self.bits_per_byte = line.get("bits_per_byte", self.bits_per_byte)
        if not math.isfinite(line.get("loss", 0.0)):
            raise divergence_error(
                f"the loss is {line['loss']}", state.global_step, line["learning_rate"], args
            )
        if distributed.is_main():
            tokens = self.count_tokens(state.global_step)
            runs.append_metrics(self.folder, {"step": state.global_step, "tokens": tokens, **line})

    def count_tokens(self, steps: int) -> int:
        """Count the tokens that all processes have learned from after so many steps."""
        return round(steps * self.tokens_per_step + self.extra_tokens)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add a sample of the model's text to the run's samples."""
        if not distributed.is_main():
            return
        text = self.callbacks.sample(kwargs["model"]).strip()
        quoted = "\n".join(f"> {line}".rstrip() for line in text.splitlines())
        with (self.folder / runs.SAMPLES).open("a", encoding="utf-8") as file:
            file.write(
                f"## Step {state.global_step}: {self.bits_per_byte:.3f} bits per "
                f"byte\n\n{quoted}\n\n"
            )

    def _adjust_threads(self) -> None:
        """Use as many threads as there are free cores, where others took some or gave some back.

        Only runs of minutes do, for their ends depend on the machine anyway. A run of steps is
        promised the same losses to the bit wherever it is killed, and another number of threads
        rounds sums otherwise.
        """
        self.recent_cpu.stop()
        share, threads = self.recent_cpu.share, torch.get_num_threads()
        is_crowded = threads > 1 and share is not None and share < CROWDED_SHARE
        has_left_some = threads < count_cores() and self.cores.count_free() >= IDLE_CORE
        if is_crowded or has_left_some:
            avoid_busy_cores()
            is_same = torch.get_num_threads() == threads
            more = min(MOST_LOOK_SECONDS, 2 * self.look_seconds)
            self.look_seconds = more if is_same else LOOK_SECONDS
        self.recent_cpu.start()
        self.looked = time.monotonic()


def divergence_error(what: str, step: int, rate: float, arguments: TrainingArguments) -> RunError:
    """Make the error of a run that diverged, with a lower learning rate to try."""
    return RunError(
        f"{what} at step {step} (learning rate {rate:.2g}): "
        f"try --set train.learning_rate={arguments.learning_rate / 3:.1g}; the last checkpoint is "
        f"kept"
    )


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the random states at the end, whatever is drawn inside."""
    python, array = random.getstate(), numpy.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)


@contextmanager
def handle_interrupt(recorder: Recorder) -> Iterator[None]:
    """Let Ctrl-C finish the step, save and stop; a second one stops at once.

    Under `torchrun` a second one does nothing: it may come from the terminal and from the launcher,
    which ends the processes itself where they take too long.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask_to_stop(signum: int, frame: Any) -> None:
        if recorder.interrupted and distributed.world_size() == 1:
            raise KeyboardInterrupt
        recorder.interrupted = True

    before = signal.signal(signal.SIGINT, ask_to_stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
