"""The settings of a training run, and the Trainer's arguments that they make."""

import functools
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from transformers import TrainingArguments

from rung import ranks, runs
from rung.device import choose_device
from rung.errors import RecipeError, did_you_mean
from rung.train.activations import rename_activations
from rung.train.adapters import ADAPTER_ARGUMENTS
from rung.train.batches import ROWS, share_batch
from rung.train.clock import EVALUATIONS
from rung.train.trackers import PROJECT, list_trackers

SCHEDULE = "warmup_stable_decay"
NEVER = 2**31  # steps
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "optim": "muon",
    "learning_rate": 6e-3,
    "lr_scheduler_type": SCHEDULE,  # `Pace`, unless it is given arguments of its own
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": ROWS,
    "save_total_limit": 2,
}
# Set by rung itself; a recipe that sets them would break what it promises.
RESERVED_ARGUMENTS = (
    "output_dir",
    "max_steps",
    "remove_unused_columns",
    "seed",
    "data_seed",
    "save_only_model",
    "ignore_data_skip",
)
# What the Trainer could do and rung's order of blocks and checkpoints cannot: it counts in steps, not in epochs.
POSSIBLE = {
    "eval_strategy": ("steps", "no"),
    "save_strategy": ("steps", "no"),
    "logging_strategy": ("steps", "no"),
    "train_sampling_strategy": ("random", "sequential"),
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long (`steps`, else `minutes`, else the epochs that `arguments` name) and with which arguments."""

    steps: int | None = None
    minutes: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # of TrainingArguments
    global_batch_size: int | None = None  # rows a step, of all processes; else what `arguments` make it
    dropout: float = 0.0  # for a model that has none of its own
    carry_state: bool = False  # train on streams, in order, instead of blocks, at random
    lora: int | None = None  # the rank of the change that is trained, and not the model itself
    seed: int = 0
    began: float | None = None  # when the minutes began to count, by `clock.now`; else when training does

    @property
    def is_timed(self) -> bool:
        """Whether the minutes say how long."""
        return self.steps is None and self.minutes is not None

    @property
    def looks_by_clock(self) -> bool:
        """Whether checkpoints and evaluations come as there is time for them, and not every so many steps."""
        return self.is_timed and not {"eval_steps", "save_steps"} & set(self.arguments)


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise `RecipeError` for a key that is no field of `TrainingArguments`, or one that is rung's to set."""
    known = [f.name for f in fields(TrainingArguments)]
    for key in arguments:
        if key not in known:
            near = did_you_mean(key, known, "the documentation of transformers lists them")
            raise RecipeError(f"train.{key}: TrainingArguments has no such field; {near}")
        if key in RESERVED_ARGUMENTS:
            raise RecipeError(f"train.{key} cannot be set: rung sets it from steps, minutes, seed and --out")
        value = arguments[key]
        if key in _list_numbers() and (isinstance(value, bool) or not isinstance(value, int | float | None)):
            raise RecipeError(f"train.{key} is {value!r}: it must be a number")
        if key in POSSIBLE and str(arguments[key]) not in (*POSSIBLE[key], "False"):  # YAML reads a bare no as false
            raise RecipeError(f"train.{key} is {arguments[key]!r}: choose from {', '.join(POSSIBLE[key])}")
    list_trackers(arguments)


@functools.cache
def _list_numbers() -> frozenset[str]:
    """The fields of `TrainingArguments` that hold a number and nothing else."""
    hints = {key: set(get_args(hint) or (hint,)) for key, hint in get_type_hints(TrainingArguments).items()}
    return frozenset(key for key, kinds in hints.items() if kinds <= {int, float, type(None)})


def make_arguments(settings: TrainSettings, folder: Path, steps: int) -> TrainingArguments:
    """What the Trainer is given for so many steps: rung's defaults, and in their place what `settings` name."""
    device = choose_device()
    every = NEVER if settings.looks_by_clock else max(1, math.ceil(steps / EVALUATIONS))
    chosen = {
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "logging_steps": max(1, steps // 100),
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "metric_for_best_model": "bits_per_byte",
        "greater_is_better": False,
        "report_to": "none",
        "ddp_find_unused_parameters": False,
        "run_name": folder.name,
        "project": PROJECT,
        "disable_tqdm": True,
        "use_cache": True,  # the Trainer writes it into the configuration that is saved; in training there is no cache
        **DEFAULT_ARGUMENTS,
        **(ADAPTER_ARGUMENTS if settings.lora else {}),
        **rename_activations(settings.arguments),
    }
    if settings.global_batch_size is not None:
        chosen |= share_batch(settings.global_batch_size, settings.arguments)
    if ranks.count() == 1:  # nothing to cut up: what was trained with FSDP2 goes on without
        chosen["fsdp"] = None
    if chosen["optim"] == "muon":  # rung's own; the Trainer knows it by its `optim_args`
        chosen |= {"optim": "adamw_torch_fused", "optim_args": "muon=1"}
    check_arguments(settings.arguments)
    try:
        arguments = TrainingArguments(
            output_dir=str(folder / runs.CHECKPOINTS),
            max_steps=steps,
            remove_unused_columns=False,
            seed=settings.seed,
            data_seed=settings.seed,
            ignore_data_skip=True,  # `Order` begins where it must
            **chosen,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one GPU: no `DataParallel`
        return arguments
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"train: {str(error).splitlines()[0]}") from error
