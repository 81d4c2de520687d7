"""Training by gradients: the Hugging Face Trainer, set up for small models on whole corpora.

Every field of `TrainingArguments` can be set. Rung adds blocks that repeat nothing, Muon as the
default optimizer, a number of steps that fits the minutes given, evaluations in bits per byte, an
interrupt that saves before it stops, and streams whose state is carried from step to step.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments

from rung import distributed
from rung.data.packing import PackedTokens, TokenDataset
from rung.device import restore_thread_count, retain_freed_memory
from rung.models.base import CausalModel
from rung.training.arguments import ENDLESS, choose_precision, count_rows, make_training_arguments
from rung.training.callbacks import TrainingCallbacks
from rung.training.checkpoints import (
    Checkpoints,
    ResumeState,
    describe_run,
    last_checkpoint,
    read_resume_state,
)
from rung.training.clock import Clock
from rung.training.cpu_usage import is_busy
from rung.training.dataset import make_dataset
from rung.training.distillation import list_runs, make_distillation
from rung.training.dropout import apply_dropout
from rung.training.lora import LoraAdapter
from rung.training.measure import measure_evaluation
from rung.training.recorder import Recorder, handle_interrupt
from rung.training.schedule import WSDSchedule
from rung.training.settings import TrainSettings
from rung.training.tbptt import make_stream_states
from rung.training.trackers import report_into
from rung.training.trainer import RungTrainer, TrainingRun

# A run of minutes is planned for so many steps until the first ones have shown how long they take.
FIRST_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A training run that ended, or that was `interrupted` and saved before its end.

    The model has the weights of `kept_step`: of the best evaluation, unless it was interrupted.
    """

    steps: int
    tokens: int
    seconds: float
    interrupted: bool
    kept_step: int = 0
    trainable_parameters: int = 0
    # Of the CPU time that the run could have used; None where the system does not count it.
    cpu_share: float | None = None
    was_busy: bool = False  # the machine, with other processes

    @property
    def tokens_per_second(self) -> float:
        """The mean over the whole of training, evaluations included."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is to be trained: the model or its adapter, on which rows, into which folder."""

    learner: Any
    dataset: TokenDataset
    folder: Path
    settings: TrainSettings
    callbacks: TrainingCallbacks
    clock: Clock


def train(
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    text: PackedTokens | TokenDataset,
    folder: Path,
    settings: TrainSettings,
    callbacks: TrainingCallbacks,
) -> TrainingResult:
    """Train `model` in place on `text`, from the last checkpoint in `folder` if there is one.

    All processes must call this; only the main one's callbacks are called. With FSDP2 only the main
    process's model gets the trained weights. Raises `RecipeError` for a bad argument, `RunError`
    when the loss is no longer a number, or when the checkpoint is damaged or another run's.
    """
    retain_freed_memory()
    dataset = make_dataset(model, tokenizer, text, folder, settings)
    clock = Clock(
        settings.minutes if settings.is_timed else None,
        settings.began,
        callbacks.scoring_cost,
        times_evaluations=settings.evaluates_by_clock,
    )
    callbacks = replace(callbacks, evaluate=clock.time_scoring(callbacks.evaluate))
    adapter = LoraAdapter(model, settings.lora) if settings.lora else None
    task = _Task(
        learner=adapter.peft_model if adapter else model,
        dataset=dataset,
        folder=folder,
        settings=settings,
        callbacks=adapter.merge_for(callbacks) if adapter else callbacks,
        clock=clock,
    )
    # The folders of teachers may move; their weights are fingerprinted in the run's record.
    moves = {"teacher": "runs"} if list_runs(settings.teacher) else {}
    description = describe_run(model.config.to_dict(), asdict(settings) | moves)
    run, arguments = _open_run(task, tokenizer, description)
    trainer, recorder = _run_trainer(task, run, arguments, tokenizer)
    trainer.gather_model()
    interrupted, steps = recorder.interrupted, trainer.state.global_step
    kept_step = steps if interrupted else trainer.load_best_weights()
    # The Trainer has wrapped the model in autocast, without which it is scored.
    trainer.accelerator.unwrap_model(task.learner, keep_fp32_wrapper=False)
    if adapter:
        adapter.merge()
        if distributed.is_main():
            adapter.save(folder)
    return TrainingResult(
        steps=steps,
        tokens=recorder.count_tokens(steps),
        seconds=clock.total_seconds(),
        interrupted=interrupted,
        kept_step=kept_step,
        trainable_parameters=sum(p.numel() for p in task.learner.parameters() if p.requires_grad),
        cpu_share=recorder.cpu.share,
        was_busy=is_busy(recorder.cpu.share),
    )


def _open_run(
    task: _Task, tokenizer: PreTrainedTokenizerBase, description: dict[str, Any]
) -> tuple[TrainingRun, TrainingArguments]:
    """Find where the run continues, choose what its settings leave open, and make its parts."""
    folder, clock = task.folder, task.clock
    checkpoint = distributed.on_main(last_checkpoint)(folder)
    resume = read_resume_state(checkpoint, description) if checkpoint else None
    settings = choose_precision(task.settings, resume.bf16 if resume else None)
    if resume:
        clock.resume(resume.seconds, resume.clock)
        if resume.threads:
            restore_thread_count(resume.threads)
    # Each process has measured for itself, and the main one decides.
    steps = distributed.broadcast(resume.planned_steps if resume else _choose_steps(task))
    arguments = make_training_arguments(settings, folder, steps)
    if settings.is_timed:
        arguments.max_steps = _count_most_steps(task)
    run = TrainingRun(
        callbacks=task.callbacks,
        checkpoints=Checkpoints(
            folder, keep=arguments.save_total_limit, is_main=arguments.should_save
        ),
        clock=clock,
        schedule=_make_schedule(steps, arguments, resume),
        planned_steps=steps,
        description=description,
        resume=resume,
        stream_states=make_stream_states(task.dataset),
        distillation=make_distillation(task.learner, tokenizer, task.dataset, settings),
    )
    return run, arguments


def _make_schedule(
    steps: int, arguments: TrainingArguments, resume: ResumeState | None
) -> WSDSchedule:
    if resume:
        return WSDSchedule.from_state(resume.schedule)
    return WSDSchedule(steps, float(arguments.warmup_steps))


def _choose_steps(task: _Task) -> int:
    """Return `steps` if they are given, else as many as the epochs have, else some to begin with.

    A run of minutes begins with `FIRST_STEPS`: the clock moves its end as steps are taken.
    """
    if task.settings.steps is not None:
        return task.settings.steps
    if task.settings.minutes is None:
        return _count_most_steps(task)
    measure_evaluation(task.learner, task.callbacks, task.clock)
    task.clock.guarantee_training()
    return min(FIRST_STEPS, _count_most_steps(task))


def _count_most_steps(task: _Task) -> int:
    """Return the steps of the epochs; those of minutes have no end where no epochs are given."""
    settings = task.settings
    if settings.minutes is not None and "num_train_epochs" not in settings.arguments:
        return ENDLESS
    arguments = make_training_arguments(settings, task.folder, 1)
    per_epoch = math.ceil(len(task.dataset) / count_rows(arguments))
    return max(1, math.ceil(per_epoch * arguments.num_train_epochs))


def _run_trainer(
    task: _Task, run: TrainingRun, arguments: TrainingArguments, tokenizer: PreTrainedTokenizerBase
) -> tuple[RungTrainer, Recorder]:
    """Train until the run ends or is interrupted."""
    tokens_per_row = task.dataset.count_tokens() / len(task.dataset)
    tokens_per_step = count_rows(arguments) * tokens_per_row
    extra_tokens = run.count_extra_rows(arguments) * tokens_per_row
    recorder = Recorder(
        task.folder, task.callbacks, task.clock, run.schedule, tokens_per_step, extra_tokens
    )
    with (
        report_into(task.folder, task.settings.arguments),
        handle_interrupt(recorder),
        apply_dropout(task.learner, task.settings.dropout),
    ):
        distributed.raise_together(run.restore_files)()
        trainer = RungTrainer(task.learner, arguments, task.dataset, tokenizer, run, [recorder])
        # Processes read other rows, and drop out other channels.
        if distributed.rank():
            torch.manual_seed(task.settings.seed + distributed.rank())
        trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    return trainer, recorder
