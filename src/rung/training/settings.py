"""The settings of a training run, and the Trainer's arguments that they make."""

import copy
import functools
import inspect
import math
import multiprocessing
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from accelerate.utils import DynamoBackend
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames, trainer_log_levels

from rung import distributed, runs
from rung.device import choose_device
from rung.errors import RecipeError, did_you_mean, first_line
from rung.training.clock import EVALUATIONS
from rung.training.global_batch import ROWS, share_batch
from rung.training.gradient_checkpointing import rename_activations
from rung.training.lora import LORA_ARGUMENTS
from rung.training.schedule import CURVE_STEPS, WARMUP_SHARE
from rung.training.trackers import PROJECT, list_trackers

SCHEDULE = "warmup_stable_decay"
MUON = "muon"  # as `optim_args`: the Trainer's own list of optimizers has no such one
ENDLESS_SCHEDULES = (
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "greedy",
)  # do not ask how long the run is
NEVER = 2**31  # steps
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "optim": "muon",
    "learning_rate": 6e-3,
    "lr_scheduler_type": SCHEDULE,  # `WSDSchedule`, unless it is given arguments of its own
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": ROWS,
    "save_total_limit": 2,
}
# What the Trainer has and rung does otherwise. To take such a field and do nothing would be a lie:
# why it is refused.
_OWN = "rung sets it from steps, minutes, seed and --out"
_RULER = "training is judged by bits per byte, at the ruler's own pace"
_BEST = "the weights of the best evaluation, by bits per byte, are kept always"
_SHIP = "a run is shipped by `rung export`, and its folder uploaded by huggingface_hub"
_WHOLE = "blocks of the text flow from one epoch into the next, all of one length"
REFUSED_ARGUMENTS: dict[str, str] = {
    **dict.fromkeys(
        ("output_dir", "max_steps", "seed", "data_seed", "save_only_model", "ignore_data_skip"),
        _OWN,
    ),
    **dict.fromkeys(
        ("remove_unused_columns", "length_column_name", "dataloader_drop_last"), _WHOLE
    ),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _BEST
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
        _RULER,
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
        _SHIP,
    ),
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict"), "a recipe trains, and is evaluated, always"
    ),
    "label_smoothing_factor": "the loss is computed in one piece with the head, without "
    "probabilities to smooth",
    "resume_from_checkpoint": "go on with `rung train --out FOLDER --resume`",
    "restore_callback_states_from_checkpoint": "`--resume` puts back all that a run had",
    "enable_jit_checkpoint": "an interrupt saves before it stops, always",
    "auto_find_batch_size": "it would change the rows of a step: set global_batch_size, or "
    "per_device_train_batch_size",
    "disable_tqdm": "the bars are rung's own: where its output is no terminal there are none",
    "local_rank": "torchrun sets it",
    "warmup_ratio": "transformers has it no more: set warmup_steps to the share, as in "
    "train.warmup_steps=0.1",
}
POSSIBLE: dict[str, tuple[str, ...]] = {
    # The Trainer knows others, that rung's order of blocks and checkpoints cannot: it counts in
    # steps, not in epochs.
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
PASSED = (
    "optimizer",
    "num_warmup_steps",
    "num_training_steps",
    "last_epoch",
)  # to a schedule, by the Trainer
TARGETED = ("galore", "apollo")  # optimizers of some modules: how their names begin
OTHER_VALUES = ("1", "0.123")  # that an optimizer's argument might have


SMALLEST = sys.float_info.min  # above 0
RANGES: dict[
    str, tuple[float, float]
] = {  # of numbers that may not be all there are from 0 on: from, and below
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (0, 1)),
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "save_total_limit"),
        (1, math.inf),
    ),
    **dict.fromkeys(("adam_epsilon", "num_train_epochs"), (SMALLEST, math.inf)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), (SMALLEST, math.inf)),
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long (`steps`, else `minutes`, else the epochs that `arguments` name) and with which
    arguments.
    """

    steps: int | None = None
    minutes: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # of TrainingArguments
    global_batch_size: int | None = (
        None  # rows a step, of all processes; else what `arguments` make it
    )
    dropout: float = 0.0  # for a model that has none of its own
    carry_state: bool = False  # train on streams, in order, instead of blocks, at random
    lora: int | None = None  # the rank of the change that is trained, and not the model itself
    seed: int = 0
    began: float | None = (
        None  # when the minutes began to count, by `clock.now`; else when training does
    )

    @property
    def is_timed(self) -> bool:
        """Whether the minutes say how long."""
        return self.steps is None and self.minutes is not None

    @property
    def looks_by_clock(self) -> bool:
        """Whether checkpoints and evaluations come as there is time for them, and not every so many
        steps.
        """
        return self.is_timed and not {"eval_steps", "save_steps"} & set(self.arguments)


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise `RecipeError` for a key that is no field of `TrainingArguments`, or one that is rung's
    to set.
    """
    known = [f.name for f in fields(TrainingArguments)]
    for key in arguments:
        if key in REFUSED_ARGUMENTS:
            raise RecipeError(f"train.{key} cannot be set: {REFUSED_ARGUMENTS[key]}")
        if key not in known:
            near = did_you_mean(key, known, "the documentation of transformers lists them")
            raise RecipeError(f"train.{key}: TrainingArguments has no such field; {near}")
        _check_value(key, arguments[key])
        if key in POSSIBLE and arguments[key] is not None:
            _check_choice(key, arguments[key])
    optimizer = _name(arguments.get("optim", MUON))
    for key, readers in (("optim_args", ""), ("optim_target_modules", TARGETED)):
        if arguments.get(key) is not None and (
            optimizer == MUON or not optimizer.startswith(readers)
        ):
            who = "Muon" if optimizer == MUON else optimizer
            raise RecipeError(
                f"train.{key} is {arguments[key]!r}: {who} takes none; name its optimizer in "
                f"train.optim"
            )
    list_trackers(arguments)


def check_length(steps: int | None, minutes: float | None, arguments: dict[str, Any]) -> None:
    """Raise `RecipeError` where more than one says how long to train, or what counts steps has none
    to count.
    """
    given = {
        "minutes": minutes,
        "steps": steps,
        "train.num_train_epochs": arguments.get("num_train_epochs"),
    }
    said = [f"{name} ({value})" for name, value in given.items() if value is not None]
    if len(said) > 1:
        raise RecipeError(f"{' and '.join(said)} are both given: choose one")
    if steps is not None or "num_train_epochs" in arguments:
        return
    for key in ("eval_steps", "save_steps", "logging_steps"):
        if 0 < (arguments.get(key) or 0) < 1:
            raise RecipeError(
                f"train.{key} is {arguments[key]}, a share of the steps, but minutes do not say "
                f"how many those are: "
                "leave it out (a run of minutes looks at its model five times), or set a whole "
                "number"
            )
    schedule = arguments.get("lr_scheduler_type", SCHEDULE)
    if schedule in ENDLESS_SCHEDULES and 0 < (arguments.get("warmup_steps") or 0) < 1:
        raise RecipeError(
            f"train.warmup_steps is {arguments['warmup_steps']}, a share of the steps, but "
            f"{schedule} does not ask how "
            "many those are, nor do minutes say: set a whole number"
        )
    if schedule == SCHEDULE and arguments.get("lr_scheduler_kwargs"):
        raise RecipeError(
            f"train.lr_scheduler_kwargs is {arguments['lr_scheduler_kwargs']}, in steps, but "
            f"minutes do not say how "
            "many those are: leave it out, or set steps in the place of minutes"
        )


def _check_choice(key: str, value: Any) -> None:
    name = "no" if value is False else _name(value)  # YAML reads a bare no as false
    if name not in POSSIBLE[key]:
        raise RecipeError(f"train.{key} is {value!r}: {did_you_mean(name, POSSIBLE[key])}")


def _name(value: Any) -> str:
    """What is called so in text, or is a member of one of transformers' enumerations."""
    return str(getattr(value, "value", value))


def _check_value(key: str, value: Any) -> None:
    """Raise `RecipeError` for a value of another type than the field's, or a number that no
    training can have.
    """
    kinds = _list_types().get(key)
    if kinds is None or (value is None and type(None) in kinds):
        return
    if kinds <= {bool, type(None)}:
        if not isinstance(value, bool):
            raise RecipeError(f"train.{key} is {value!r}: it must be true or false")
        return
    if kinds <= {str, type(None)}:
        if not isinstance(value, str) and key not in POSSIBLE:
            raise RecipeError(f"train.{key} is {value!r}: it must be a text")
        return
    whole = float not in kinds
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise RecipeError(
            f"train.{key} is {value!r}: it must be a {'whole ' if whole else ''}number"
        )
    least, most = RANGES.get(key, (0, math.inf))
    if not least <= value < most:
        end = "above 0" if least == SMALLEST else f"{least:g} or more"
        end = f"from {least:g} up to {most:g}" if most < math.inf else end
        raise RecipeError(f"train.{key} is {value!r}: it must be {end}")


@functools.cache
def _list_types() -> dict[str, set[type]]:
    """The types of the fields of `TrainingArguments` that hold a number, or yes or no, or text, and
    nothing else.
    """
    hints = {
        key: set(get_args(hint) or (hint,))
        for key, hint in get_type_hints(TrainingArguments).items()
    }
    hints["fsdp"].add(bool)  # true is what the Trainer wants there, though its hint says text alone
    plain = ({int, float, type(None)}, {bool, type(None)}, {str, type(None)})
    return {key: kinds for key, kinds in hints.items() if any(kinds <= kind for kind in plain)}


def make_arguments(settings: TrainSettings, folder: Path, steps: int) -> TrainingArguments:
    """What the Trainer is given for so many steps: rung's defaults, and in their place what
    `settings` name.
    """
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
        # The Trainer writes it into the configuration that is saved; in training there is no cache.
        "use_cache": True,
        **DEFAULT_ARGUMENTS,
        **(LORA_ARGUMENTS if settings.lora else {}),
        **rename_activations(settings.arguments),
    }
    if settings.global_batch_size is not None:
        chosen |= share_batch(settings.global_batch_size, settings.arguments)
    # One process has nothing to shard: a run begun with FSDP2 goes on without it.
    if distributed.world_size() == 1:
        chosen["fsdp"] = None
    check_arguments(settings.arguments)
    if chosen["lr_scheduler_type"] == SCHEDULE and not chosen.get("lr_scheduler_kwargs"):
        chosen = {"warmup_steps": WARMUP_SHARE} | chosen
    if chosen["optim"] == MUON:
        chosen |= {"optim": "adamw_torch_fused", "optim_args": MUON}
    try:
        arguments = TrainingArguments(
            output_dir=str(folder / runs.CHECKPOINTS),
            max_steps=steps,
            remove_unused_columns=False,
            seed=settings.seed,
            data_seed=settings.seed,
            ignore_data_skip=True,  # `ResumableSampler` begins where it must
            **chosen,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one GPU: no `DataParallel`
    except Exception as error:  # for values of the wrong kind it has many
        raise RecipeError(f"train: {first_line(error)}") from error
    for check in (_check_schedule, _check_optimizer, _check_compiler):
        check(arguments)
    return arguments


def _check_schedule(arguments: TrainingArguments) -> None:
    """Raise `RecipeError` for what the schedule does not take: it is made and followed here, as it
    will be later.
    """
    kind, options = _name(arguments.lr_scheduler_type), arguments.lr_scheduler_kwargs
    if options is None and kind == SCHEDULE:  # `WSDSchedule`
        return
    if not isinstance(options, dict | None):
        raise RecipeError(
            f"train.lr_scheduler_kwargs is {options!r}: it must be a mapping, as {{num_cycles: 2}}"
        )
    taken = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(kind)]).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        known = [name for name in taken if name not in PASSED]
        for key in (options or {}).keys() - set(known):
            near = did_you_mean(str(key), known) if known else "leave it out"
            raise RecipeError(
                f"train.lr_scheduler_kwargs.{key}: the schedule {kind} takes no such argument; "
                f"{near}"
            )
    try:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
        for curve in getattr(
            get_scheduler(kind, optimizer, 1, CURVE_STEPS, options), "lr_lambdas", ()
        ):
            for step in range(0, CURVE_STEPS, CURVE_STEPS // 10):
                float(curve(step))
    except Exception as error:  # whatever comes of such values
        given = "" if options is None else f", lr_scheduler_kwargs {options}"
        raise RecipeError(
            f"train.lr_scheduler_type is {kind}{given}: {first_line(error)}"
        ) from error


def _check_optimizer(arguments: TrainingArguments) -> None:
    """Raise `RecipeError` for an optimizer that cannot be had here, and for arguments that it does
    not read.
    """
    asked, name = arguments.optim_args, _name(arguments.optim)
    if asked == MUON:
        return
    pieces = [] if asked is None else asked.replace(" ", "").split(",")
    if not all(piece.count("=") == 1 and piece[0] != "=" for piece in pieces):
        raise RecipeError(
            f"train.optim_args is {asked!r}: write key=value, and a comma before another"
        )
    made = _describe_optimizer(arguments, pieces)
    if isinstance(made, Exception):
        if "pass a" in str(made) and "model" in str(made):  # it is made of one, when there is one
            return
        raise RecipeError(
            f"train.optim is {name}{f', optim_args {asked}' if asked else ''}: {first_line(made)}"
        )
    for piece in pieces:
        others = [other for other in pieces if other != piece]
        key = piece.partition("=")[0]
        variants = [others, *([*others, f"{key}={value}"] for value in OTHER_VALUES)]
        if all(_describe_optimizer(arguments, variant) == made for variant in variants):
            raise RecipeError(
                f"train.optim_args has {piece}, which {name} does not read: leave it out"
            )


def _describe_optimizer(arguments: TrainingArguments, pieces: list[str]) -> Any:
    """The optimizer's class and arguments; the error where there is none. One of torch's own is
    made, too.
    """
    changed = copy.copy(arguments)
    changed.optim_args = ",".join(pieces)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(changed)
        if getattr(kind, "__module__", "").startswith("torch."):
            kind([torch.zeros(1)], **options)
    except Exception as error:  # whatever comes of such values
        return error
    return kind, options


def _check_compiler(arguments: TrainingArguments) -> None:
    """Raise `RecipeError` for a backend of `torch.compile` that the Trainer or torch does not
    know.
    """
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
