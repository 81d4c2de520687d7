"""How long training takes here: the seconds of a step and of an evaluation, measured on some."""

import copy
import itertools
import math
import statistics
from pathlib import Path
from typing import Any

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
from rung.training.schedule import WSDSchedule
from rung.training.settings import TrainSettings
from rung.training.tbptt import make_stream_states
from rung.training.trainer import RungTrainer, TrainingRun

# Steps are measured for so many seconds, and no longer than a share of the minutes, unless a single
# one takes longer. Evaluations are measured twice, unless the first took that share.
MEASURED_SECONDS = 1.5
MEASURED_SHARE = 0.03
# The schedule of the measured training has so many steps, of which few are taken.
MEASURED_STEPS = 10_000


def measure_step(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    text: PackedTokens | TokenDataset,
    folder: Path,
    settings: TrainSettings,
) -> float:
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
    )
    RungTrainer(copy.deepcopy(model), arguments, dataset, tokenizer, run, [timer]).train()
    return timer.seconds_per_step()


@distributed.on_main
def measure_evaluation(model: CausalModel, callbacks: TrainingCallbacks, clock: Clock) -> None:
    """Let the clock know the seconds of an evaluation and a sample.

    Those of the second time count, unless the first took too long.
    """
    for _ in range(2):
        before = now()
        callbacks.evaluate(model.eval())
        callbacks.sample(model)
        clock.evaluation_seconds = now() - before
        if clock.evaluation_seconds > MEASURED_SHARE * clock.budget:
            return


class StepTimer(TrainerCallback):
    """Times steps until `enough` seconds have passed, and stops training then.

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
        enough = too_long or (took > self.enough and steps > COLD_STEPS + 1)
        control.should_training_stop = any(distributed.all_reduce_max(enough))

    def seconds_per_step(self) -> float:
        """Return the mean of median and mean: a stray pause counts, but not in full."""
        warm = self.times[min(COLD_STEPS, len(self.times) - 2) :]
        durations = [after - before for before, after in itertools.pairwise(warm)]
        return (statistics.median(durations) + statistics.fmean(durations)) / 2
