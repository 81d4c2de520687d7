"""Checks of what a recipe sets of `TrainingArguments`, before anything is made of it."""

import copy
import functools
import inspect
import math
import multiprocessing
import sys
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import torch
from accelerate.utils import DynamoBackend
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames, trainer_log_levels

from rung.errors import RecipeError, did_you_mean, first_line
from rung.ladder import LADDER
from rung.models import RUNGS
from rung.models.base import CausalModel
from rung.training.optimizer import read_muon_options
from rung.training.schedule import CURVE_STEPS
from rung.training.settings import MUON, SCHEDULE
from rung.training.trackers import list_trackers

# Fields of `TrainingArguments` that rung would have to ignore, and why it refuses them.
_SET_BY_RUNG = "rung sets it from steps, minutes, seed and --out"
_EVALUATION = "training is evaluated by bits per byte, in batches of rung's own"
_BEST_WEIGHTS = "the weights of the best evaluation, by bits per byte, are always kept"
_EXPORT = "`rung export` exports a run, and huggingface_hub uploads its folder"
_EPOCHS = "blocks of the text flow from one epoch into the next, all of one length"
REFUSED_ARGUMENTS: dict[str, str] = {
    **dict.fromkeys(
        ("output_dir", "max_steps", "seed", "data_seed", "save_only_model", "ignore_data_skip"),
        _SET_BY_RUNG,
    ),
    **dict.fromkeys(
        ("remove_unused_columns", "length_column_name", "dataloader_drop_last"), _EPOCHS
    ),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _BEST_WEIGHTS
    ),
    **dict.fromkeys(
        (
            "per_device_eval_batch_size",
            "prediction_loss_only",
            "eval_accumulation_steps",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "include_for_metrics",
            "batch_eval_metrics",
            "bf16_full_eval",
            "fp16_full_eval",
            "label_names",
        ),
        _EVALUATION,
    ),
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ),
        _EXPORT,
    ),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "a recipe always trains and evaluates"),
    "label_smoothing_factor": "the head and the loss are computed in one piece, without "
    "probabilities to smooth",
    "resume_from_checkpoint": "go on with `rung train --out FOLDER --resume`",
    "restore_callback_states_from_checkpoint": "`--resume` restores everything that a run had",
    "enable_jit_checkpoint": "an interrupt always saves before it stops",
    "auto_find_batch_size": "it would change the rows of a step: set global_batch_size, or "
    "per_device_train_batch_size",
    "disable_tqdm": "rung draws its own bars, and none where its output is no terminal",
    "local_rank": "torchrun sets it",
    "warmup_ratio": "transformers has removed it: set warmup_steps to the share, as in "
    "train.warmup_steps=0.1",
}
CHOICES: dict[str, tuple[str, ...]] = {
    # The Trainer knows more, such as "epoch". rung's sampler and checkpoints count in steps.
    "eval_strategy": ("steps", "no"),
    "save_strategy": ("steps", "no"),
    "logging_strategy": ("steps", "no"),
    "train_sampling_strategy": ("random", "sequential"),
    "lr_scheduler_type": tuple(kind.value for kind in SchedulerType),
    "optim": (MUON, *(name.value for name in OptimizerNames)),
    "log_level": tuple(trainer_log_levels),
    "log_level_replica": tuple(trainer_log_levels),
    "include_num_input_tokens_seen": ("all", "non_padding", "no", "True"),
    "dataloader_multiprocessing_context": tuple(multiprocessing.get_all_start_methods()),
    "torch_compile_mode": (
        "default",
        "reduce-overhead",
        "max-autotune",
        "max-autotune-no-cudagraphs",
    ),
}
# Parameters of a schedule that the Trainer passes itself.
TRAINER_PARAMETERS = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
# How the names of the optimizers begin that are for some modules only.
TARGETED_OPTIMIZERS = ("galore", "apollo")
# Values that tell whether an optimizer reads an argument.
PROBE_VALUES = ("1", "0.123")

# Gradient checkpointing: the field has the first name, newer versions of transformers the second.
OLD_CHECKPOINTING, NEW_CHECKPOINTING = "gradient_checkpointing", "activation_checkpointing"
ABOVE_ZERO = sys.float_info.min
# A number must be at least the first and below the second; all others at least 0.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (0, 1)),
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "save_total_limit"),
        (1, math.inf),
    ),
    **dict.fromkeys(("adam_epsilon", "num_train_epochs"), (ABOVE_ZERO, math.inf)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), (ABOVE_ZERO, math.inf)),
}


def name_of(value: Any) -> str:
    """Return the name of an option, given as text or as a member of transformers' enumeration."""
    return str(getattr(value, "value", value))


def check_arguments(arguments: dict[str, Any]) -> None:
    """Check the names and values of fields of `TrainingArguments`.

    Raises `RecipeError` for a field that does not exist, that rung sets itself, or whose value
    cannot be had.
    """
    known = [f.name for f in fields(TrainingArguments)]
    for key, value in arguments.items():
        if key in REFUSED_ARGUMENTS:
            raise RecipeError(f"train.{key} cannot be set: {REFUSED_ARGUMENTS[key]}")
        if key not in known:
            near = did_you_mean(key, known, "the documentation of transformers lists them")
            raise RecipeError(f"train.{key}: TrainingArguments has no such field; {near}")
        _check_value(key, value)
        if key in CHOICES and value is not None:
            _check_choice(key, value)
    _check_optimizer_options(arguments)
    list_trackers(arguments)


def check_gradient_checkpointing(
    name: str, model: type[CausalModel], arguments: dict[str, Any]
) -> None:
    """Raise `RecipeError` for a model without layers whose activations could be dropped."""
    for key in (OLD_CHECKPOINTING, NEW_CHECKPOINTING):
        if arguments.get(key) and not model.supports_gradient_checkpointing:
            able = ", ".join(
                name for name in LADDER if RUNGS[name].model_class.supports_gradient_checkpointing
            )
            raise RecipeError(
                f"train.{key} is {arguments[key]!r}: {name} cannot train so, its memory is in the "
                f"steps through time and not in layers; of the rungs, {able} can"
            )


def check_made(arguments: TrainingArguments) -> None:
    """Try what the arguments name: the schedule, the optimizer, the compiler.

    Raises `RecipeError` where one cannot be had here, or does not read an option that is given.
    """
    _check_schedule(arguments)
    _check_optimizer(arguments)
    _check_compiler(arguments)


def _check_optimizer_options(arguments: dict[str, Any]) -> None:
    optimizer = name_of(arguments.get("optim", MUON))
    for key, readers in (("optim_args", ""), ("optim_target_modules", TARGETED_OPTIMIZERS)):
        if optimizer == MUON and key == "optim_args":
            _check_muon_options(arguments.get(key))
            continue
        is_read = optimizer != MUON and optimizer.startswith(readers)
        if arguments.get(key) is not None and not is_read:
            name = "Muon" if optimizer == MUON else optimizer
            raise RecipeError(
                f"train.{key} is {arguments[key]!r}: {name} takes none; name its optimizer in "
                f"train.optim"
            )


def _check_muon_options(options: Any) -> None:
    try:
        read_muon_options(options)
    except ValueError as error:
        raise RecipeError(
            f"train.optim_args is {options!r}: Muon takes embedding_lr_scale=NUMBER alone; for "
            f"others name their optimizer in train.optim"
        ) from error


def _check_choice(key: str, value: Any) -> None:
    # YAML reads a bare no as false.
    name = "no" if value is False else name_of(value)
    if name not in CHOICES[key]:
        raise RecipeError(f"train.{key} is {value!r}: {did_you_mean(name, CHOICES[key])}")


def _check_value(key: str, value: Any) -> None:
    """Raise `RecipeError` for a value of another type than the field's, or out of its range."""
    kinds = _list_types().get(key)
    if kinds is None or (value is None and type(None) in kinds):
        return
    if kinds <= {bool, type(None)}:
        if not isinstance(value, bool):
            raise RecipeError(f"train.{key} is {value!r}: it must be true or false")
        return
    if kinds <= {str, type(None)}:
        if not isinstance(value, str) and key not in CHOICES:
            raise RecipeError(f"train.{key} is {value!r}: it must be a text")
        return
    whole = float not in kinds
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise RecipeError(
            f"train.{key} is {value!r}: it must be a {'whole ' if whole else ''}number"
        )
    least, most = RANGES.get(key, (0, math.inf))
    if not least <= value < most:
        end = "above 0" if least == ABOVE_ZERO else f"{least:g} or more"
        end = f"from {least:g} up to {most:g}" if most < math.inf else end
        raise RecipeError(f"train.{key} is {value!r}: it must be {end}")


@functools.cache
def _list_types() -> dict[str, set[type]]:
    """List the types of each field that holds numbers, truth values or text, and nothing else."""
    hints = {
        key: set(get_args(hint) or (hint,))
        for key, hint in get_type_hints(TrainingArguments).items()
    }
    # The Trainer wants true there, though its hint says text alone.
    hints["fsdp"].add(bool)
    plain = ({int, float, type(None)}, {bool, type(None)}, {str, type(None)})
    return {key: kinds for key, kinds in hints.items() if any(kinds <= kind for kind in plain)}


def _check_schedule(arguments: TrainingArguments) -> None:
    """Raise `RecipeError` for options that the schedule does not take, or cannot follow."""
    kind, options = name_of(arguments.lr_scheduler_type), arguments.lr_scheduler_kwargs
    # This is `WSDSchedule`.
    if options is None and kind == SCHEDULE:
        return
    if not isinstance(options, dict | None):
        raise RecipeError(
            f"train.lr_scheduler_kwargs is {options!r}: it must be a mapping, as {{num_cycles: 2}}"
        )
    taken = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(kind)]).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        known = [name for name in taken if name not in TRAINER_PARAMETERS]
        for key in (options or {}).keys() - set(known):
            near = did_you_mean(str(key), known) if known else "leave it out"
            raise RecipeError(
                f"train.lr_scheduler_kwargs.{key}: the schedule {kind} takes no such argument; "
                f"{near}"
            )
    try:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
        scheduler = get_scheduler(kind, optimizer, 1, CURVE_STEPS, options)
        for curve in getattr(scheduler, "lr_lambdas", ()):
            for step in range(0, CURVE_STEPS, CURVE_STEPS // 10):
                float(curve(step))
    # Options of the wrong kind raise errors of many kinds.
    except Exception as error:
        given = "" if options is None else f", lr_scheduler_kwargs {options}"
        raise RecipeError(
            f"train.lr_scheduler_type is {kind}{given}: {first_line(error)}"
        ) from error


def _check_optimizer(arguments: TrainingArguments) -> None:
    """Raise `RecipeError` for an optimizer that cannot be had, or an option that it ignores."""
    asked, name = arguments.optim_args, name_of(arguments.optim)
    pieces = [] if asked is None else asked.replace(" ", "").split(",")
    if not all(piece.count("=") == 1 and piece[0] != "=" for piece in pieces):
        raise RecipeError(
            f"train.optim_args is {asked!r}: write key=value, and a comma before another"
        )
    made = _describe_optimizer(arguments, pieces)
    if isinstance(made, Exception):
        # Some are made from a model, which is not there yet.
        if "pass a" in str(made) and "model" in str(made):
            return
        raise RecipeError(
            f"train.optim is {name}{f', optim_args {asked}' if asked else ''}: {first_line(made)}"
        )
    for piece in pieces:
        others = [other for other in pieces if other != piece]
        key = piece.partition("=")[0]
        variants = [others, *([*others, f"{key}={value}"] for value in PROBE_VALUES)]
        if all(_describe_optimizer(arguments, variant) == made for variant in variants):
            raise RecipeError(
                f"train.optim_args has {piece}, which {name} does not read: leave it out"
            )


def _describe_optimizer(arguments: TrainingArguments, pieces: list[str]) -> Any:
    """Return the optimizer's class and options, or the error that comes instead.

    An optimizer of torch is made, so that it checks the values.
    """
    changed = copy.copy(arguments)
    changed.optim_args = ",".join(pieces)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(changed)
        if getattr(kind, "__module__", "").startswith("torch."):
            kind([torch.zeros(1)], **options)
    except Exception as error:
        return error
    return kind, options


def _check_compiler(arguments: TrainingArguments) -> None:
    """Raise `RecipeError` for a backend of `torch.compile` that the Trainer or torch lacks."""
    backend = arguments.torch_compile_backend
    if not arguments.torch_compile or backend == "inductor":
        return
    known = {name.value.lower() for name in DynamoBackend}
    known &= {"no", *torch.compiler.list_backends(exclude_tags=())}
    if str(backend).lower() not in known:
        raise RecipeError(
            f"train.torch_compile_backend is {backend!r}: "
            f"{did_you_mean(str(backend), sorted(known))}"
        )
