"""The settings of a training run: for how long, and with which fields of `TrainingArguments`."""

from dataclasses import dataclass, field
from typing import Any

from rung.errors import RecipeError

SCHEDULE = "warmup_stable_decay"
MUON = "muon"
# Schedules that do not depend on the number of steps.
ENDLESS_SCHEDULES = ("inverse_sqrt", "reduce_lr_on_plateau", "greedy")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long to train, and how.

    `steps` says how long, or `minutes`, or the epochs that `arguments` name; of minutes and epochs,
    whichever end first. The names of the fields are keys in checkpoints.
    """

    steps: int | None = None
    minutes: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # of TrainingArguments
    # Rows a step, of all processes; where it is None, what `arguments` make it.
    global_batch_size: int | None = None
    dropout: float = 0.0  # for a model that has none of its own
    carry_state: bool = False  # truncated back-propagation through time, on streams in order
    teacher: str | None = None  # of `distillation.py`: "ngram", or folders with commas between
    lora: int | None = None  # the rank of the adapter that is trained in the model's place
    seed: int = 0
    # When the minutes began to count, by `clock.now`; where it is None, when training begins.
    began: float | None = None

    @property
    def is_timed(self) -> bool:
        """Whether the minutes say how long."""
        return self.steps is None and self.minutes is not None

    @property
    def evaluates_by_clock(self) -> bool:
        """Whether checkpoints and evaluations come as time allows, and not every so many steps."""
        return self.is_timed and not {"eval_steps", "save_steps"} & set(self.arguments)


def check_duration(steps: int | None, minutes: float | None, arguments: dict[str, Any]) -> None:
    """Check that what says how long to train agrees, and that the others can be counted by it.

    Raises `RecipeError` where steps are given beside minutes or epochs, or where a share of the
    steps is asked for and nobody knows how many steps there are.
    """
    epochs = arguments.get("num_train_epochs")
    others = {"minutes": minutes, "train.num_train_epochs": epochs}
    said = [f"{name} ({value})" for name, value in others.items() if value is not None]
    if steps is not None and said:
        raise RecipeError(f"steps ({steps}) and {' and '.join(said)} are both given: choose one")
    if steps is not None or (minutes is None and epochs is not None):
        return
    for key in ("eval_steps", "save_steps", "logging_steps"):
        if 0 < (arguments.get(key) or 0) < 1:
            raise RecipeError(
                f"train.{key} is {arguments[key]}, a share of the steps, but minutes do not say "
                f"how many those are: leave it out (a run of minutes is evaluated five times), or "
                f"set a whole number"
            )
    schedule = arguments.get("lr_scheduler_type", SCHEDULE)
    if schedule in ENDLESS_SCHEDULES and 0 < (arguments.get("warmup_steps") or 0) < 1:
        raise RecipeError(
            f"train.warmup_steps is {arguments['warmup_steps']}, a share of the steps, but neither "
            f"{schedule} nor minutes say how many those are: set a whole number"
        )
    if schedule == SCHEDULE and arguments.get("lr_scheduler_kwargs"):
        raise RecipeError(
            f"train.lr_scheduler_kwargs is {arguments['lr_scheduler_kwargs']}, in steps, but "
            f"minutes do not say how many those are: leave it out, or set steps in the place of "
            f"minutes"
        )
