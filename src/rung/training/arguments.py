"""The `TrainingArguments` of a run: defaults, what settings name in their place, rows of a step."""

import logging
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from rung import distributed, runs
from rung.device import choose_device, has_fast_bfloat16
from rung.errors import RecipeError, first_line
from rung.training.argument_checks import (
    NEW_CHECKPOINTING,
    OLD_CHECKPOINTING,
    check_arguments,
    check_made,
)
from rung.training.clock import MAX_EVALUATIONS
from rung.training.lora import LORA_ARGUMENTS
from rung.training.schedule import WARMUP_SHARE
from rung.training.settings import MUON, SCHEDULE, TrainSettings
from rung.training.trackers import PROJECT

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 8  # rows of a process at a time
# Evaluations and checkpoints every so many steps never come.
NEVER = 2**31
# The Trainer is given so many steps where the clock ends them.
ENDLESS = 10**9
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "optim": MUON,
    "learning_rate": 6e-3,
    "lr_scheduler_type": SCHEDULE,  # `WSDSchedule`, unless it is given arguments of its own
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": DEFAULT_BATCH_SIZE,
    "save_total_limit": 2,
}


def make_training_arguments(settings: TrainSettings, folder: Path, steps: int) -> TrainingArguments:
    """Make the Trainer's arguments for so many steps.

    `optim` of the arguments is "muon" where rung's Muon is meant, which `RungTrainer` creates.
    Raises `RecipeError` for a field or a value that cannot be had.
    """
    check_arguments(settings.arguments)
    chosen = _choose_arguments(settings, folder, steps)
    uses_muon = chosen["optim"] == MUON
    # `TrainingArguments` refuses a name that it does not know, so Muon's is set afterwards.
    # Its options too are not those of what stands in its place.
    if uses_muon:
        chosen["optim"] = "adamw_torch_fused"
        options = chosen.pop("optim_args", None)
    try:
        arguments = TrainingArguments(
            output_dir=str(folder / runs.CHECKPOINTS),
            max_steps=steps,
            remove_unused_columns=False,
            seed=settings.seed,
            data_seed=settings.seed,
            # `ResumableSampler` begins at the right row by itself.
            ignore_data_skip=True,
            **chosen,
        )
    # Values of the wrong kind raise errors of many kinds.
    except Exception as error:
        raise RecipeError(f"train: {first_line(error)}") from error
    # A process has one GPU: with several the Trainer would use `DataParallel`.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    check_made(arguments)
    if uses_muon:
        arguments.optim, arguments.optim_args = MUON, options
    return arguments


def _choose_arguments(settings: TrainSettings, folder: Path, steps: int) -> dict[str, Any]:
    """Put together the defaults, and in their place the fields that the settings name."""
    device = choose_device()
    every = NEVER if settings.evaluates_by_clock else max(1, math.ceil(steps / MAX_EVALUATIONS))
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
        # The Trainer writes it into the configuration that is saved; in training there is no cache.
        "use_cache": True,
        **DEFAULT_ARGUMENTS,
        **(LORA_ARGUMENTS if settings.lora else {}),
        **_rename_checkpointing(settings.arguments),
    }
    if settings.global_batch_size is not None:
        chosen |= split_global_batch(settings.global_batch_size, settings.arguments)
    # One process has nothing to shard: a run begun with FSDP2 continues without it.
    if distributed.world_size() == 1:
        chosen["fsdp"] = None
    if chosen["lr_scheduler_type"] == SCHEDULE and not chosen.get("lr_scheduler_kwargs"):
        chosen = {"warmup_steps": WARMUP_SHARE} | chosen
    return chosen


def _rename_checkpointing(arguments: dict[str, Any]) -> dict[str, Any]:
    """Give the arguments the name that the installed transformers prefers.

    It warns of the other one at every run.
    """
    known = {f.name for f in fields(TrainingArguments)}
    names = {
        key: key.replace(OLD_CHECKPOINTING, NEW_CHECKPOINTING)
        for key in (OLD_CHECKPOINTING, f"{OLD_CHECKPOINTING}_kwargs")
        if NEW_CHECKPOINTING in known
    }
    return {names.get(key, key): value for key, value in arguments.items()}


def choose_precision(settings: TrainSettings, begun_in_bf16: bool | None = None) -> TrainSettings:
    """Choose between bfloat16 and float32 for all processes, where the settings do not.

    A run continues in the precision that it was begun in; a new one takes the faster one here.
    Processes that measured otherwise could not add up their gradients, so the main one decides.
    Float16 needs a GPU: without one it is left out, with a warning.
    """
    if settings.arguments.get("fp16"):
        if choose_device().type != "cpu":
            return settings
        logger.warning(
            "train.fp16 needs a GPU: without one this run is in bfloat16 or float32, whichever is "
            "faster here"
        )
        kept = {key: value for key, value in settings.arguments.items() if key != "fp16"}
        settings = replace(settings, arguments=kept)
    if "bf16" in settings.arguments:
        return settings
    if begun_in_bf16 is None:
        begun_in_bf16 = distributed.on_main(has_fast_bfloat16)(choose_device())
    return replace(settings, arguments={**settings.arguments, "bf16": begun_in_bf16})


def count_rows(arguments: TrainingArguments) -> int:
    """Count the rows that all processes read in a step."""
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def find_global_batch_size(arguments: dict[str, Any]) -> int:
    """Count the rows a step that these fields of `TrainingArguments` make with all processes."""
    rows = arguments.get("per_device_train_batch_size", DEFAULT_BATCH_SIZE) * arguments.get(
        "gradient_accumulation_steps", 1
    )
    return rows * distributed.world_size()


def split_global_batch(global_batch_size: int, arguments: dict[str, Any]) -> dict[str, int]:
    """Return the fields of `TrainingArguments` that give each process an even share of the rows.

    A process reads as many rows at a time as `arguments` say, or fewer, and accumulates gradients
    for the rest. Raises `RecipeError` where the rows cannot be shared evenly.
    """
    rows, left = divmod(global_batch_size, distributed.world_size())
    if left:
        raise RecipeError(
            f"global_batch_size is {global_batch_size}, for {distributed.world_size()} processes: "
            "it must be a multiple of that"
        )
    most = arguments.get("per_device_train_batch_size") or max(
        1, rows // arguments.get("gradient_accumulation_steps", 1)
    )
    at_a_time = next(size for size in range(min(most, rows), 0, -1) if rows % size == 0)
    return {
        "per_device_train_batch_size": at_a_time,
        "gradient_accumulation_steps": rows // at_a_time,
    }
