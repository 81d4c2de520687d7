"""How long training takes here: the seconds of a step and of an evaluation, measured on some."""

import copy
import gc
import itertools
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rung import distributed
from rung.data.packing import PackedTokens, TokenDataset
from rung.models.base import CausalModel
from rung.training.arguments import choose_precision, make_training_arguments
from rung.training.callbacks import NO_CALLBACKS, TrainingCallbacks
from rung.training.checkpoints import Checkpoints
from rung.training.clock import COLD_STEPS, Clock, now
from rung.training.dataset import make_dataset
from rung.training.distillation import make_distillation
from rung.training.schedule import WSDSchedule
from rung.training.settings import TrainSettings
from rung.training.tbptt import make_stream_states
from rung.training.trainer import RungTrainer, TrainingRun

# Steps are measured for so many seconds, and no longer than a share of the minutes, unless a single
# one takes longer.
MEASURED_SECONDS = 1.5
MEASURED_SHARE = 0.03
# So many warm steps are enough where their mean is known to within this standard error: on a quiet
# machine they are alike, and beside other processes they are not.
EVEN_STEPS, EVEN = 4, 0.03
# The first evaluation is slower by what is loaded for it. Where it took more than this share of the
# minutes, and no more than what steps are measured for, a second one says how long others take.
SHORT_EVALUATION = 0.02
# The schedule of the measured training has so many steps, of which few are taken.
MEASURED_STEPS = 10_000


class StepTime(NamedTuple):
    """The seconds of a step, and those that it took to measure them, cold steps among them."""

    seconds: float
    measuring: float


def measure_step(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    text: PackedTokens | TokenDataset,
    folder: Path,
    settings: TrainSettings,
) -> StepTime:
    """Measure the seconds of a training step, on a copy of the model. All processes call this.

    At least one step is taken, however long it takes.
    """
    most = MEASURED_SHARE * 60 * settings.minutes if settings.minutes else math.inf
    timer = StepTimer(min(MEASURED_SECONDS, most), most)
    settings = choose_precision(settings)
    dataset = make_dataset(model, tokenizer, text, folder, settings)
    arguments = make_training_arguments(settings, folder, MEASURED_STEPS)
    arguments.save_strategy = arguments.eval_strategy = arguments.logging_strategy = "no"
    arguments.report_to = []
    run = TrainingRun(
        callbacks=NO_CALLBACKS,
        checkpoints=Checkpoints(folder, keep=None, is_main=arguments.should_save),
        clock=Clock(),
        schedule=WSDSchedule(MEASURED_STEPS, float(arguments.warmup_steps)),
        planned_steps=MEASURED_STEPS,
        description={},
        stream_states=make_stream_states(dataset),
        distillation=make_distillation(model, tokenizer, dataset, settings),
    )
    with _frozen_objects():
        RungTrainer(copy.deepcopy(model), arguments, dataset, tokenizer, run, [timer]).train()
    return StepTime(timer.seconds_per_step(), timer.times[-1] - timer.times[0])


@contextmanager
def _frozen_objects() -> Iterator[None]:
    """Keep the objects that are there out of garbage collection.

    The Trainer collects as it starts, and to look at all objects of the libraries takes as long as
    some steps. The one that trains does so too, after the measuring.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@distributed.on_main
def measure_evaluation(model: CausalModel, callbacks: TrainingCallbacks, clock: Clock) -> None:
    """Let the clock know the seconds of an evaluation and a sample.

    One is enough where it is short, for the clock learns of every later one. Of two the second
    counts, unless the first took too long.
    """
    for _ in range(2):
        before = now()
        callbacks.evaluate(model.eval())
        callbacks.sample(model)
        clock.evaluation_seconds = now() - before
        share = clock.evaluation_seconds / clock.budget
        if share <= SHORT_EVALUATION or share > MEASURED_SHARE:
            return


class StepTimer(TrainerCallback):
    """Times steps until they prove even or `enough` seconds have passed, and stops training then.

    The first step is slower by half or more, so a second one is taken unless the first took twice
    `most` seconds. The time before the first step, in which the Trainer is built and the processes
    meet, does not count.
    """

    def __init__(self, enough: float, most: float) -> None:
        self.enough = enough
        self.most = most
        self.times: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Note when the first step begins."""
        self.times = [now()]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Note the time, and stop when it is enough, all processes at once."""
        self.times.append(now())
        took, steps = self.times[-1] - self.times[0], len(self.times) - 1
        too_long = took > self.most and (steps > 1 or took > 2 * self.most)
        enough = too_long or self._are_even() or (took > self.enough and steps > COLD_STEPS + 1)
        control.should_training_stop = any(distributed.all_reduce_max(enough))

    def seconds_per_step(self) -> float:
        """Return the mean of median and mean: a stray pause counts, but not in full."""
        durations = self._warm_steps()
        return (statistics.median(durations) + statistics.fmean(durations)) / 2

    def _are_even(self) -> bool:
        """Whether enough warm steps were taken for the mean to be known."""
        durations = self._warm_steps()
        if len(durations) < EVEN_STEPS:
            return False
        error = statistics.stdev(durations) / math.sqrt(len(durations))
        return error <= EVEN * statistics.fmean(durations)

    def _warm_steps(self) -> list[float]:
        """Return the seconds of each step but the cold ones; of the last where all are cold."""
        warm = self.times[min(COLD_STEPS, len(self.times) - 2) :]
        return [after - before for before, after in itertools.pairwise(warm)]
