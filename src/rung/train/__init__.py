"""Training by gradients: the Hugging Face Trainer, wired for small models on whole corpora.

Everything in `TrainingArguments` can be set. What is rung's own: blocks that repeat nothing, Muon as the
default optimizer, a number of steps that fits the minutes given, a ruler that reads bits per byte as the
model learns, an interrupt that saves before it stops, and streams whose state is carried from step to step.
"""

import copy
import json
import logging
import math
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from rung import runs
from rung.device import choose_device, has_fast_bfloat16, keep_freed_memory
from rung.errors import RecipeError, RunError, did_you_mean
from rung.models import CausalModel
from rung.pack import Blocks, Packed, Streams, keep_batch
from rung.train.activations import check_activations, rename_activations
from rung.train.adapters import ADAPTER_ARGUMENTS, Adapter, check_lora
from rung.train.carried import Carried, check_carry_state
from rung.train.optimizer import Muon, Pace, Stopwatch, group_parameters
from rung.train.recording import ROOM, Hooks, Progress, Recorder, interrupt_politely
from rung.train.trackers import PROJECT, check_trackers, list_trackers, report_below

__all__ = [
    "Hooks",
    "Progress",
    "TrainSettings",
    "Trained",
    "check_activations",
    "check_arguments",
    "check_carry_state",
    "check_lora",
    "check_trackers",
    "last_checkpoint",
    "train",
]

logger = logging.getLogger(__name__)

EVALUATIONS = 5  # and as many checkpoints, in a run
MEASURED_SECONDS = 3.0  # real steps taken to find out how long one is
BLOCK_LENGTH = 256  # tokens, where the model does not say

DEFAULT_ARGUMENTS: dict[str, Any] = {
    "optim": "muon",
    "learning_rate": 6e-3,
    "lr_scheduler_type": "warmup_stable_decay",  # `Pace`, unless it is given arguments of its own
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 8,
    "save_total_limit": 2,
}
# Set by rung itself; a recipe that sets them would break what it promises.
RESERVED_ARGUMENTS = ("output_dir", "max_steps", "remove_unused_columns", "seed", "data_seed")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long (`steps`, else `minutes`, else the epochs that `arguments` name) and with which arguments."""

    steps: int | None = None
    minutes: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # of TrainingArguments
    carry_state: bool = False  # train on streams, in order, instead of blocks, at random
    lora: int | None = None  # the rank of the change that is trained, and not the model itself
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run took; `interrupted` when it was stopped before its end and saved."""

    steps: int
    tokens: int
    seconds: float
    interrupted: bool
    trainable_parameters: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Over the whole of training, evaluations included."""
        return self.tokens / self.seconds if self.seconds else 0.0


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise `RecipeError` for a key that is no field of `TrainingArguments`, or one that is rung's to set."""
    known = [f.name for f in fields(TrainingArguments)]
    for key in arguments:
        if key not in known:
            raise RecipeError(f"train.{key}: TrainingArguments has no such field; {did_you_mean(key, known)}")
        if key in RESERVED_ARGUMENTS:
            raise RecipeError(f"train.{key} cannot be set: rung sets it from steps, minutes, seed and --out")
    list_trackers(arguments)


def train(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    packed: Packed,
    folder: Path,
    settings: TrainSettings,
    hooks: Hooks,
) -> Trained:
    """Train `model` in place on `packed`, from the last checkpoint in `folder` if there is one.

    Raises `RecipeError` for a bad argument, `RunError` when the loss is no longer a number.
    """
    started = time.perf_counter()
    keep_freed_memory()
    blocks = _cut(model, tokenizer, packed, folder, settings)
    adapter = Adapter(model, settings.lora) if settings.lora else None
    learner, hooks = (adapter.learner, adapter.watch(hooks)) if adapter else (model, hooks)
    resumed = last_checkpoint(folder)
    if resumed:
        steps, deadline = _read_state(resumed)["max_steps"], None
        runs.keep_metrics_before(folder, _read_state(resumed)["global_step"])
    else:
        steps = _choose_steps(learner, tokenizer, blocks, folder, settings, hooks)
        timed = settings.minutes if settings.steps is None else None
        deadline = started + timed * 60 if timed else None
    arguments = _make_arguments(settings, folder, steps)
    arguments.max_steps = steps * (ROOM if deadline else 1)
    tokens_a_step = _rows_a_step(arguments) * blocks.length
    recorder = Recorder(folder, hooks, tokens_a_step, deadline)
    with report_below(folder, settings.arguments), interrupt_politely(recorder):
        trainer = _Trainer(learner, arguments, blocks, tokenizer, hooks, [recorder])
        trainer.pace = recorder.pace = Pace(steps)
        if resumed and trainer.carried:
            trainer.carried.load(resumed)
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    trainer.accelerator.unwrap_model(learner, keep_fp32_wrapper=False)  # scores are read without autocast
    if adapter:
        adapter.merge()
        adapter.save(folder)
    done = trainer.state.global_step
    seconds = time.perf_counter() - started
    return Trained(
        steps=done,
        tokens=done * tokens_a_step,
        seconds=seconds,
        interrupted=recorder.interrupted,
        trainable_parameters=sum(p.numel() for p in learner.parameters() if p.requires_grad),
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end."""
    found = [p for p in (folder / runs.CHECKPOINTS).glob("checkpoint-*") if (p / "trainer_state.json").exists()]
    return max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)


class _Trainer(Trainer):
    """The Trainer with rung's optimizer, and its ruler in the place of an evaluation loss."""

    def __init__(
        self,
        model: CausalModel,
        arguments: TrainingArguments,
        blocks: Blocks | Streams,
        tokenizer: PreTrainedTokenizerBase,
        hooks: Hooks | None,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.hooks = hooks
        self.carried = Carried(blocks.count, arguments.process_index) if isinstance(blocks, Streams) else None
        self.pace: Pace | None = None
        self.optimizer: torch.optim.Optimizer | None
        self.control: TrainerControl
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=blocks,
            eval_dataset=blocks if hooks else None,  # asked for, never read: `evaluate` has its own text
            data_collator=keep_batch,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        for callback in ("PrinterCallback", "ProgressCallback"):
            for present in [c for c in self.callback_handler.callbacks if type(c).__name__ == callback]:
                self.remove_callback(present)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Muon unless another was asked for."""
        if self.optimizer is None and not self.args.optim_args:
            return super().create_optimizer(model)
        if self.optimizer is None:
            groups = group_parameters(self.model, weight_decay=self.args.weight_decay)
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = Muon(groups, lr=self.args.learning_rate, betas=betas, eps=self.args.adam_epsilon)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Level, then a line to zero, unless another was asked for."""
        if self.args.lr_scheduler_type != "warmup_stable_decay" or self.args.lr_scheduler_kwargs:
            return super().create_scheduler(num_training_steps, optimizer)
        self.pace = self.pace or Pace(num_training_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or cast(Any, self.optimizer), self.pace)
        return self.lr_scheduler

    def _get_train_sampler(self, *args: Any) -> Sampler[int] | None:
        return SequentialSampler(self.train_dataset) if self.carried else super()._get_train_sampler(*args)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any) -> Any:
        """The Trainer's; streams go on from the state that they were left with."""
        if self.carried is None:
            return super().compute_loss(model, inputs, return_outputs, **options)
        stream, inputs = self.carried.take_up(inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        self.carried.leave(stream, outputs.past_key_values)
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        folder = Path(cast(str, self.args.output_dir))
        with runs.explain_failed_writes(folder):
            if self.carried:  # before the rest: a checkpoint counts as whole once the Trainer's last file is there
                self.carried.save(folder / f"checkpoint-{self.state.global_step}")
            super()._save_checkpoint(*args, **options)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Bits per byte on held-out text."""
        assert self.hooks is not None
        model = self.accelerator.unwrap_model(self.model).eval()
        metrics = {"eval_bits_per_byte": self.hooks.evaluate(model)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        model.train()
        return metrics


def _cut(
    model: CausalModel, tokenizer: PreTrainedTokenizerBase, packed: Packed, folder: Path, settings: TrainSettings
) -> Blocks | Streams:
    """The row as it is trained on: blocks, or as many streams as a step has rows.

    accelerate deals whole batches in turn, to the processes and then to the batches that a step accumulates: each
    has its own streams.
    """
    length: int = model.context_length or getattr(model.config, "max_position_embeddings", None) or BLOCK_LENGTH
    if not settings.carry_state:
        return Blocks(packed, length, tokenizer.pad_token_id)
    check_carry_state(type(model), settings.arguments)
    return Streams(packed, length, tokenizer.pad_token_id, _rows_a_step(_make_arguments(settings, folder, 1)))


def _rows_a_step(arguments: TrainingArguments) -> int:
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def _choose_steps(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Blocks | Streams,
    folder: Path,
    settings: TrainSettings,
    hooks: Hooks,
) -> int:
    """`steps` if given; else as many as `minutes` allow, evaluations included, by real steps on this machine."""
    if settings.steps is not None:
        return settings.steps
    arguments = _make_arguments(settings, folder, 1)
    per_epoch = math.ceil(len(blocks) / _rows_a_step(arguments))
    if settings.minutes is None:
        return max(1, math.ceil(per_epoch * arguments.num_train_epochs))
    budget, started = settings.minutes * 60, time.perf_counter()
    for _ in range(2):  # the first one is slow
        before = time.perf_counter()
        hooks.evaluate(model.eval())
        hooks.sample(model)
        evaluation = time.perf_counter() - before
    a_step = _measure_step(model, tokenizer, blocks, folder, settings)
    left = budget - (time.perf_counter() - started) - (EVALUATIONS + 1) * evaluation
    steps = max(1, int(max(left, budget / 4) / a_step))
    logger.info("a step takes %.0f ms, an evaluation %.1f s: %d steps", 1000 * a_step, evaluation, steps)
    return steps


def _measure_step(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Blocks | Streams,
    folder: Path,
    settings: TrainSettings,
) -> float:
    """Seconds of one training step, by taking some on a copy of the model."""
    watch = Stopwatch(MEASURED_SECONDS)
    arguments = _make_arguments(settings, folder, 10_000)
    arguments.save_strategy = arguments.eval_strategy = arguments.logging_strategy = "no"
    arguments.report_to = []
    _Trainer(copy.deepcopy(model), arguments, blocks, tokenizer, None, [watch]).train()
    return watch.seconds_per_step()


def _make_arguments(settings: TrainSettings, folder: Path, steps: int) -> TrainingArguments:
    device = choose_device()
    every = max(1, math.ceil(steps / EVALUATIONS))
    chosen = {
        "bf16": has_fast_bfloat16(device),
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "logging_steps": max(1, steps // 100),
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "report_to": "none",
        "run_name": folder.name,
        "project": PROJECT,
        "disable_tqdm": True,
        **DEFAULT_ARGUMENTS,
        **(ADAPTER_ARGUMENTS if settings.lora else {}),
        **rename_activations(settings.arguments),
    }
    if chosen["optim"] == "muon":  # rung's own; the Trainer knows it by its `optim_args`
        chosen |= {"optim": "adamw_torch_fused", "optim_args": "muon=1"}
    check_arguments(settings.arguments)
    try:
        return TrainingArguments(
            output_dir=str(folder / runs.CHECKPOINTS),
            max_steps=steps,
            remove_unused_columns=False,
            seed=settings.seed,
            data_seed=settings.seed,
            **chosen,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"train: {str(error).splitlines()[0]}") from error


def _read_state(checkpoint: Path) -> dict[str, Any]:
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{checkpoint} is damaged ({error}): delete it to resume from the one before") from error
