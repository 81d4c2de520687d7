"""Training by gradients: the Hugging Face Trainer, wired for small models on whole corpora.

Everything in `TrainingArguments` can be set. What is rung's own: blocks that repeat nothing, Muon
as the default optimizer, a number of steps that fits the minutes given, a ruler that reads bits per
byte as the model learns, an interrupt that saves before it stops, and streams whose state is
carried from step to step.
"""

import copy
import functools
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, get_scheduler

from rung import distributed
from rung.data.packing import (
    BlockDataset,
    PackedTokens,
    TBPTTDataset,
    TokenDataset,
    identity_collator,
)
from rung.device import choose_device, has_fast_bfloat16, keep_freed_memory, keep_threads
from rung.errors import RecipeError, first_line
from rung.models.base import CausalModel
from rung.training.callbacks import NO_CALLBACKS, TrainingCallbacks
from rung.training.checkpoints import (
    SAVING,
    Checkpoints,
    Standing,
    describe_run,
    find_checkpoints,
    last_checkpoint,
    read_standing,
)
from rung.training.clock import Clock, now
from rung.training.cpu_usage import is_busy
from rung.training.dropout import dropping_out
from rung.training.global_batch import count_rows, find_global_batch_size
from rung.training.gradient_checkpointing import check_activations
from rung.training.lora import LoraAdapter, check_lora
from rung.training.optimizer import Muon, Stopwatch, group_parameters
from rung.training.recorder import ENDLESS, Recorder, interrupt_politely
from rung.training.schedule import CURVE_STEPS, WSDSchedule
from rung.training.settings import (
    ENDLESS_SCHEDULES,
    MUON,
    SCHEDULE,
    TrainSettings,
    check_arguments,
    check_length,
    make_arguments,
)
from rung.training.tbptt import StreamStates, check_carry_state
from rung.training.trackers import check_trackers, report_below
from rung.training.trainer import Keeping, ResumableTrainer

__all__ = [
    "NO_CALLBACKS",
    "SAVING",
    "TrainSettings",
    "Trained",
    "TrainingCallbacks",
    "check_activations",
    "check_arguments",
    "check_carry_state",
    "check_length",
    "check_lora",
    "check_trackers",
    "find_block_length",
    "find_checkpoints",
    "find_global_batch_size",
    "last_checkpoint",
    "make_arguments",
    "measure_step",
    "train",
]

logger = logging.getLogger(__name__)

MEASURED_SECONDS = 1.5  # real steps taken to find out how long one is
MEASURED = (
    0.03  # of the minutes, at the most, for that, and for a look, unless a single one takes longer
)
FIRST_STEPS = 100  # that a run is planned for until the first ones have shown how long they take
BLOCK_LENGTH = 256  # tokens, where the model does not say


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run took; `interrupted` when it was stopped before its end and saved.

    The weights are those of `kept_step`: of the best evaluation, unless the run was interrupted.
    """

    steps: int
    tokens: int
    seconds: float
    interrupted: bool
    kept_step: int = 0
    trainable_parameters: int = 0
    cpu_share: float | None = (
        None  # that it got of the CPU time that it could have used; None where nobody counts
    )
    was_busy: bool = False  # the machine, with other things

    @property
    def tokens_per_second(self) -> float:
        """Over the whole of training, evaluations included."""
        return self.tokens / self.seconds if self.seconds else 0.0


def train(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    text: PackedTokens | TokenDataset,
    folder: Path,
    settings: TrainSettings,
    callbacks: TrainingCallbacks,
) -> Trained:
    """Train `model` in place on `text`, from the last checkpoint in `folder` if there is one.

    Of several processes all call this, and the main one's callbacks are called; with FSDP only its
    model is trained in place. Raises `RecipeError` for a bad argument, `RunError` when the loss is
    no longer a number, or the checkpoint is damaged or another run's.
    """
    keep_freed_memory()
    blocks = _cut(model, tokenizer, text, folder, settings)
    clock = Clock(
        settings.minutes if settings.is_timed else None, settings.began, callbacks.scoring_cost
    )
    callbacks = replace(callbacks, evaluate=clock.timing(callbacks.evaluate))
    adapter = LoraAdapter(model, settings.lora) if settings.lora else None
    learner, callbacks = (
        (adapter.peft_model, adapter.merge_for(callbacks)) if adapter else (model, callbacks)
    )
    made = describe_run(model.config.to_dict(), asdict(settings))
    choose = functools.partial(_choose_steps, learner, blocks, folder, callbacks, clock)
    keeping, arguments = _keep(folder, settings, made, choose, clock)
    a_step = count_rows(arguments) * blocks.count_tokens() / len(blocks)  # padding is no token
    recorder = Recorder(folder, callbacks, a_step, clock, looks_by_clock=settings.looks_by_clock)
    recorder.more_tokens = keeping.more_rows * blocks.count_tokens() / len(blocks)
    with (
        report_below(folder, settings.arguments),
        interrupt_politely(recorder),
        dropping_out(learner, settings.dropout),
    ):
        trainer = _Trainer(learner, arguments, blocks, tokenizer, callbacks, [recorder])
        trainer.keeping = keeping
        trainer.pace = recorder.pace = keeping.pace
        distributed.raise_together(keeping.take_up)(trainer.carried)
        if distributed.rank():
            torch.manual_seed(settings.seed + distributed.rank())  # other rows, other dropout
        trainer.train(resume_from_checkpoint=str(keeping.resumed) if keeping.resumed else None)
    trainer.find_whole()
    kept = trainer.state.global_step if recorder.interrupted else trainer.keep_best()
    trainer.accelerator.unwrap_model(
        learner, keep_fp32_wrapper=False
    )  # scores are read without autocast
    if adapter:
        adapter.merge()
        if distributed.is_main():
            adapter.save(folder)
    trained = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    return _sum_up(recorder, trainer.state.global_step, kept, trained)


def _sum_up(recorder: Recorder, steps: int, kept: int, trainable_parameters: int) -> Trained:
    return Trained(
        steps=steps,
        tokens=recorder.count_tokens(steps),
        seconds=recorder.clock.total(),
        interrupted=recorder.interrupted,
        kept_step=kept,
        trainable_parameters=trainable_parameters,
        cpu_share=recorder.cpu.share,
        was_busy=is_busy(recorder.cpu.share),
    )


def _keep(
    folder: Path,
    settings: TrainSettings,
    made: dict[str, Any],
    choose: Callable[[TrainSettings], int],
    clock: Clock,
) -> tuple[Keeping, TrainingArguments]:
    """What the run keeps to be taken up again, and its arguments; `choose` says for how many steps
    a new one is.
    """
    resumed = distributed.on_main(last_checkpoint)(folder)
    standing = read_standing(resumed, made) if resumed else None
    settings = _choose_precision(settings, standing)
    if standing:
        clock.go_on(standing.seconds, standing.clock)
        if standing.threads:
            keep_threads(standing.threads)
    steps = standing.planned if standing else choose(settings)
    steps = distributed.broadcast(steps)  # each process has measured, and the main one decides
    arguments = make_arguments(settings, folder, steps)
    arguments.max_steps = ENDLESS if settings.is_timed else steps
    keeping = Keeping(
        checkpoints=Checkpoints(
            folder, keep=arguments.save_total_limit, is_main=arguments.should_save
        ),
        clock=clock,
        pace=WSDSchedule(steps, float(arguments.warmup_steps)),
        planned=steps,
        made=made,
        resumed=resumed,
        standing=standing,
        more_rows=standing.rows - standing.step * count_rows(arguments) if standing else 0,
    )
    return keeping, arguments


def _choose_precision(settings: TrainSettings, standing: Standing | None) -> TrainSettings:
    """The faster one here, for all processes: two that find otherwise cannot add up their
    gradients. A run goes on in the one that it was begun in. Float16 is for a GPU: without one,
    what was asked to be in it is not.
    """
    if settings.arguments.get("fp16"):
        if choose_device().type != "cpu":
            return settings
        logger.warning(
            "train.fp16 needs a GPU: without one this run is in bfloat16 or float32, the faster "
            "here"
        )
        settings = replace(
            settings, arguments={k: v for k, v in settings.arguments.items() if k != "fp16"}
        )
    if "bf16" in settings.arguments:
        return settings
    bf16 = standing.bf16 if standing else distributed.on_main(has_fast_bfloat16)(choose_device())
    return replace(settings, arguments={**settings.arguments, "bf16": bf16})


class _Trainer(ResumableTrainer):
    """The Trainer with rung's optimizer, and its ruler in the place of an evaluation loss."""

    def __init__(
        self,
        model: CausalModel,
        arguments: TrainingArguments,
        blocks: TokenDataset,
        tokenizer: PreTrainedTokenizerBase,
        functions: TrainingCallbacks | None,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.functions = functions
        self.carried = StreamStates(blocks.count) if isinstance(blocks, TBPTTDataset) else None
        self.pace: WSDSchedule | None = None
        self.optimizer: torch.optim.Optimizer | None
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=blocks,
            eval_dataset=blocks
            if functions
            else None,  # asked for, never read: `evaluate` has its own text
            data_collator=identity_collator,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        for callback in ("PrinterCallback", "ProgressCallback"):
            for present in [
                c for c in self.callback_handler.callbacks if type(c).__name__ == callback
            ]:
                self.remove_callback(present)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Muon unless another was asked for."""
        if self.args.optim_args != MUON:
            try:
                return super().create_optimizer(model)
            except (
                ValueError,
                TypeError,
                ImportError,
            ) as error:  # of optimizers that are made of a model
                raise RecipeError(
                    f"train.optim is {self.args.optim.value}: {first_line(error)}"
                ) from error
        if self.optimizer is None:
            groups = group_parameters(self.model, weight_decay=self.args.weight_decay)
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            dtype = torch.bfloat16 if self.args.bf16 else torch.float32
            self.optimizer = Muon(
                groups,
                lr=self.args.learning_rate,
                betas=betas,
                eps=self.args.adam_epsilon,
                dtype=dtype,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Level, then a line to zero, unless another was asked for; that too ends where the clock
        ends the run.
        """
        optimizer = optimizer or self.optimizer
        kind, options = self.args.lr_scheduler_type, self.args.lr_scheduler_kwargs
        self.pace = self.pace or WSDSchedule(num_training_steps, float(self.args.warmup_steps))
        factors: Any = self.pace
        if kind != SCHEDULE or options:
            if self.args.max_steps != ENDLESS or kind in ENDLESS_SCHEDULES:
                return super().create_scheduler(num_training_steps, optimizer)
            whole = get_scheduler(kind, optimizer, 0, CURVE_STEPS, options)
            factors = [self.pace.stretch(curve) for curve in whole.lr_lambdas]
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any
    ) -> Any:
        """The Trainer's, without logits; streams go on from the state that they were left with."""
        inputs = {**inputs, "skip_logits": True}
        if self.carried is None:
            return super().compute_loss(model, inputs, return_outputs, **options)
        stream, inputs = self.carried.take_up(inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        self.carried.leave(stream, outputs.past_key_values)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Bits per byte on held-out text."""
        model = self.find_whole()
        metrics = {"eval_bits_per_byte": self._score(model)}
        self.log(metrics)
        self.callback_handler.model = model
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        if self.is_fsdp_enabled and distributed.is_main():
            model.cpu()
        self.model.train()
        return metrics

    @distributed.on_main
    def _score(self, model: CausalModel) -> float:
        functions = cast(TrainingCallbacks, self.functions)
        return functions.evaluate(model.to(self.args.device).eval())


def _cut(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    text: PackedTokens | TokenDataset,
    folder: Path,
    settings: TrainSettings,
) -> TokenDataset:
    """Packed text as it is trained on: blocks, or as many streams as a step has rows; rows are so
    already.

    accelerate deals whole batches in turn, to the processes and then to the batches that a step
    accumulates: each has its own streams.
    """
    if not isinstance(text, PackedTokens):
        return text
    length = find_block_length(model)
    if not settings.carry_state:
        return BlockDataset(text, length, tokenizer.pad_token_id)
    check_carry_state(type(model), settings.arguments)
    return TBPTTDataset(
        text, length, tokenizer.pad_token_id, count_rows(make_arguments(settings, folder, 1))
    )


def find_block_length(model: CausalModel) -> int:
    """Tokens of a row that it is trained on."""
    return (
        model.context_length
        or getattr(model.config, "max_position_embeddings", None)
        or BLOCK_LENGTH
    )


def _choose_steps(
    model: CausalModel,
    blocks: TokenDataset,
    folder: Path,
    callbacks: TrainingCallbacks,
    clock: Clock,
    settings: TrainSettings,
) -> int:
    """`steps` if given; else for `minutes` so many to begin with, for the clock moves the end as
    steps are taken.
    """
    if settings.steps is not None:
        return settings.steps
    arguments = make_arguments(settings, folder, 1)
    per_epoch = math.ceil(len(blocks) / count_rows(arguments))
    if settings.minutes is None:
        return max(1, math.ceil(per_epoch * arguments.num_train_epochs))
    _time_look(model, callbacks, clock)
    clock.grant_least()
    return FIRST_STEPS


@distributed.on_main
def _time_look(model: CausalModel, callbacks: TrainingCallbacks, clock: Clock) -> None:
    """Let the clock see what an evaluation and a sample take: the second ones, unless the first
    took too long.
    """
    for _ in range(2):
        before = now()
        callbacks.evaluate(model.eval())
        callbacks.sample(model)
        clock.look = now() - before
        if clock.look > MEASURED * clock.budget:
            return


def measure_step(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    text: PackedTokens | TokenDataset,
    folder: Path,
    settings: TrainSettings,
) -> float:
    """Seconds of one training step, by taking some on a copy of the model; one at least, however
    long it takes.
    """
    most = MEASURED * 60 * settings.minutes if settings.minutes else math.inf
    watch, settings = (
        Stopwatch(min(MEASURED_SECONDS, most), most),
        _choose_precision(settings, None),
    )
    blocks = _cut(model, tokenizer, text, folder, settings)
    arguments = make_arguments(settings, folder, 10_000)
    arguments.save_strategy = arguments.eval_strategy = arguments.logging_strategy = "no"
    arguments.report_to = []
    _Trainer(copy.deepcopy(model), arguments, blocks, tokenizer, None, [watch]).train()
    return watch.seconds_per_step()
