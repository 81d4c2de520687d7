"""What training shows and writes as it goes, and how it is stopped: by the clock, by Ctrl-C, by a
loss that is none.
"""

import math
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rung import distributed, runs
from rung.device import count_cores, leave_busy_cores
from rung.errors import RunError
from rung.progress import Progress
from rung.training.callbacks import TrainingCallbacks
from rung.training.clock import EVALUATIONS, LOOKING, Clock
from rung.training.cpu_usage import CpuMeter, is_busy
from rung.training.schedule import WSDSchedule

ENDLESS = 10**9  # steps: the Trainer is given so many where the clock ends them
TOLERATED = 0.1  # of the steps to come: by so many the end may be off before it is moved
SAVE, LOOK = 1, 2  # without an evaluation, and with one


class Recorder(TrainerCallback):
    """Writes metrics and samples, moves the bar, keeps to the deadline, and stops when asked to.

    Where `looks_by_clock`, the looks at the model too are as many as there is time for.
    """

    pace: WSDSchedule
    more_tokens = 0.0  # read than steps of so many tokens as now make, where they had others before

    def __init__(
        self,
        folder: Path,
        callbacks: TrainingCallbacks,
        tokens_a_step: float,
        clock: Clock,
        *,
        looks_by_clock: bool = False,
    ) -> None:
        self.folder = folder
        self.callbacks = callbacks
        self.tokens_a_step = tokens_a_step
        self.clock = clock
        self.looks_by_clock = looks_by_clock
        self.looked_at = 0  # the step
        self.cpu = CpuMeter()
        self.lately = CpuMeter()  # since the last evaluation
        self.loss: float | None = None
        self.bits_per_byte: float | None = None
        self.interrupted = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock; a run that was killed behind its last step has none left."""
        self.clock.start_training()
        self.cpu.start()
        self.lately.start()
        self.looked_at = state.global_step
        state.max_steps = self.pace.end
        control.should_training_stop = state.global_step >= self.pace.end

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar; after an interrupt, save and stop. All processes stop, or set the end, at
        the same step.
        """
        self.clock.count_step()
        done = state.global_step
        planned = (
            (self._find_end(done, args.max_steps), self._wants_look(done))
            if distributed.is_main()
            else (0, 0)
        )
        asked, end, look = distributed.all_reduce_max(int(self.interrupted), *planned)
        if end:
            if state.max_steps <= done < end and self.looks_by_clock:  # it was the last step
                control.should_evaluate = control.should_save = False
            self.pace.move_end(done, end)
            state.max_steps = self.pace.end
            control.should_training_stop = done >= end
        if look or (self.clock.budget < math.inf and done >= self.pace.end):
            self._ask_for_look(args, control, done, with_evaluation=look != SAVE)
        if asked:
            self.interrupted = control.should_save = control.should_training_stop = True
        self.callbacks.on_progress(
            Progress(
                stage="training",
                done=done,
                total=state.max_steps,
                loss=self.loss,
                bits_per_byte=self.bits_per_byte,
                tokens_per_second=self.tokens_a_step / max(self.clock.step, 1e-9),
                seconds_left=min(self.clock.left(), (state.max_steps - done) * self.clock.step),
            )
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the share of the CPU that training got."""
        self.cpu.stop()

    def _find_end(self, done: int, most: int) -> int:
        """The last step by the time that is left and what steps and looks take now; 0 to leave it
        where it is.
        """
        if self.clock.budget == math.inf:
            return 0
        if self.clock.left() < self.clock.step / 2:
            return done
        looks = max(0, self.pace.end - done - 1) * EVALUATIONS // self.pace.end
        left = min(max(1, int(self.clock.find_steps_left(looks))), most - done)
        if (
            done >= self.pace.end
        ):  # the rate has fallen: to go on is worth its while where the plan was far off
            return done + left if left > done else 0
        is_off = abs(done + left - self.pace.end) > max(1, TOLERATED * left)
        return done + left if is_off else 0

    def _wants_look(self, done: int) -> int:
        """Where a fifth of the way is behind the last look and much of one to come, what there is
        time for.
        """
        every = self.pace.end / EVALUATIONS
        due = (
            self.looks_by_clock
            and done - self.looked_at >= every
            and self.pace.end - done > every / 2
        )
        if not due or self.clock.looked > LOOKING * self.clock.budget:
            return 0
        return LOOK if self.clock.can_look() else SAVE

    def _ask_for_look(
        self, args: TrainingArguments, control: TrainerControl, done: int, *, with_evaluation: bool
    ) -> None:
        """Log, save and evaluate, unless the arguments say that it is never done."""
        self.looked_at = done
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
        """Write what was logged; a loss that is no number ends the run."""
        names = {"eval_bits_per_byte": "bits_per_byte"}
        kept = ("loss", "learning_rate", "grad_norm", "eval_bits_per_byte")
        line = {names.get(key, key): value for key, value in (logs or {}).items() if key in kept}
        if not line:
            return
        self.loss = line.get("loss", self.loss)
        self.bits_per_byte = line.get("bits_per_byte", self.bits_per_byte)
        if not math.isfinite(line.get("loss", 0.0)):
            raise diverged(
                f"the loss is {line['loss']}", state.global_step, line["learning_rate"], args
            )
        if distributed.is_main():
            tokens = self.count_tokens(state.global_step)
            runs.append_metrics(self.folder, {"step": state.global_step, "tokens": tokens, **line})

    def count_tokens(self, steps: int) -> int:
        """Tokens that all processes have learned from by then."""
        return round(steps * self.tokens_a_step + self.more_tokens)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what the model writes by now."""
        if self.clock.budget < math.inf:
            self._watch_cores()
        if not distributed.is_main():
            return
        text = self.callbacks.sample(kwargs["model"]).strip()
        quoted = "\n".join(f"> {line}".rstrip() for line in text.splitlines())
        with (self.folder / runs.SAMPLES).open("a", encoding="utf-8") as file:
            file.write(
                f"## Step {state.global_step}: {self.bits_per_byte:.3f} bits per "
                f"byte\n\n{quoted}\n\n"
            )

    def _watch_cores(self) -> None:
        """Have as many threads as there are cores by now, where others took some since the last
        look, or had before.

        Only the clock's runs do: their ends move with the machine anyway. A run of steps is
        promised the same losses to the bit wherever it is killed, and sums are rounded otherwise
        with another number of threads.
        """
        self.lately.stop()
        if is_busy(self.lately.share) or torch.get_num_threads() < count_cores():
            leave_busy_cores()
        self.lately.start()


def diverged(what: str, step: int, rate: float, arguments: TrainingArguments) -> RunError:
    """What is wrong, where, and what to try."""
    return RunError(
        f"{what} at step {step} (learning rate {rate:.2g}): "
        f"try --set train.learning_rate={arguments.learning_rate / 3:.1g}; the last checkpoint is "
        f"kept"
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

    Not under `torchrun`: there it may come twice, from the terminal and from the launcher, which
    ends the processes itself where they take too long.
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
