"""The one subclass of the Hugging Face Trainer: rung's optimizer, schedule, evaluation and resume.

A run that was killed at any moment continues as if it had not been: with the same losses, to the
bit. A checkpoint is written before the evaluation of its step, so an evaluation that fails costs no
training; a run that continues repeats it with the random numbers of before.

Every method of the Trainer that is overridden is overridden here, once, with its reason.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_model
from torch.utils.data import Sampler
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
    get_scheduler,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from rung import distributed, runs
from rung.data.packing import BlockDataset, TokenDataset, identity_collator
from rung.errors import RecipeError, first_line
from rung.full_disk import explain_failed_writes
from rung.models.base import CausalModel
from rung.training.argument_checks import name_of
from rung.training.arguments import count_rows
from rung.training.callbacks import TrainingCallbacks
from rung.training.checkpoints import Checkpoints, ResumeState, write_resume_state
from rung.training.clock import Clock
from rung.training.distillation import Distillation
from rung.training.optimizer import make_muon
from rung.training.recorder import divergence_error, preserve_random_state
from rung.training.sampler import ResumableSampler
from rung.training.schedule import CURVE_STEPS, WSDSchedule
from rung.training.settings import ENDLESS_SCHEDULES, MUON, SCHEDULE
from rung.training.sharding import (
    allow_cpu_sharding,
    gather_optimizer_state,
    gather_weights,
    load_optimizer_state,
    reduce_in_float32,
    to_local,
)
from rung.training.tbptt import StreamStates


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The parts of a run that the Trainer works with, beside the model and the text."""

    callbacks: TrainingCallbacks
    checkpoints: Checkpoints
    clock: Clock
    schedule: WSDSchedule
    planned_steps: int
    description: dict[str, Any]  # from `describe_run`
    resume: ResumeState | None = None  # None for a run that begins
    stream_states: StreamStates | None = None  # of truncated back-propagation through time
    distillation: Distillation | None = None

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint that the run continues from."""
        return self.checkpoints.path_of(self.resume.step) if self.resume else None

    def count_extra_rows(self, args: TrainingArguments) -> int:
        """Count the rows read beyond those of steps as they are now, or below 0 those not read."""
        return self.resume.rows - self.resume.step * count_rows(args) if self.resume else 0

    def restore_files(self) -> None:
        """Bring checkpoints, metrics, samples and stream states to where the run continues.

        Lines that the run wrote after its checkpoint are removed, for it writes them again.
        """
        self.checkpoints.open(self.resume.step if self.resume else 0)
        if self.resume is None or self.checkpoint is None:
            return
        if self.checkpoints.is_main:
            due = self.resume.evaluation_due
            runs.rewind_logs(self.checkpoints.run, self.resume.step, evaluate=due)
        if self.stream_states:
            self.stream_states.load(self.checkpoint)


class RungTrainer(Trainer):
    """The Trainer of every run, in one process or several, with FSDP2 or without.

    `full_model` is scored, sampled and saved. It is the model itself; with FSDP2 the Trainer shards
    a copy, and `full_model` is on the main process alone.
    """

    control: TrainerControl
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: CausalModel,
        args: TrainingArguments,
        dataset: TokenDataset,
        tokenizer: PreTrainedTokenizerBase,
        run: TrainingRun,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self.run = run
        self.full_model = model
        # With FSDP2, the optimizer's state in full tensors for the checkpoint being written.
        self.gathered_state: dict[str, Any] = {}
        self.evaluation_due = False
        self.extra_rows = run.count_extra_rows(args)
        if args.fsdp:
            allow_cpu_sharding()
            if distributed.is_main():
                model = copy.deepcopy(model.cpu())
        super().__init__(
            model=model,
            args=args,
            train_dataset=cast(Any, dataset),
            # It is required, but never read: `evaluate` has a text of its own.
            eval_dataset=cast(Any, dataset),
            data_collator=identity_collator,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)

    # The policy is part of the accelerator's plugin, which exists from here on.
    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, with FSDP2 adding gradients up in float32."""
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled and self.args.bf16:
            reduce_in_float32(self.accelerator)

    # The Trainer's list of optimizers has no Muon that steps several matrices at once.
    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create Muon, or the Trainer's optimizer that `optim` names.

        Raises `RecipeError` where an optimizer that is made from a model cannot be made from this.
        """
        if self.args.optim != MUON:
            try:
                return super().create_optimizer(model)
            except (ValueError, TypeError, ImportError) as error:
                message = f"train.optim is {name_of(self.args.optim)}: {first_line(error)}"
                raise RecipeError(message) from error
        if self.optimizer is None:
            tokens = count_rows(self.args) * cast(Any, self.train_dataset).length
            self.optimizer = make_muon(self.model, self.args, tokens)
        return self.optimizer

    # The clock may move the end of a run, and the Trainer's schedules cannot move theirs.
    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the warmup-stable-decay schedule, or another that ends where the run does."""
        optimizer = optimizer or self.optimizer
        kind, options = self.args.lr_scheduler_type, self.args.lr_scheduler_kwargs
        factors: Any = self.run.schedule
        if kind != SCHEDULE or options:
            if self.run.clock.budget == math.inf or kind in ENDLESS_SCHEDULES:
                return super().create_scheduler(num_training_steps, optimizer)
            curves = get_scheduler(kind, optimizer, 0, CURVE_STEPS, options).lr_lambdas
            factors = [self.run.schedule.stretch(curve) for curve in curves]
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return self.lr_scheduler

    # The loss needs no logits, and a stream continues from the state that its last batch left.
    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any
    ) -> Any:
        """Compute the loss without logits, soften its targets, and carry streams' states on."""
        inputs = {**inputs, "skip_logits": True}
        if self.run.distillation:
            step = self.state.global_step
            done, rows = self.run.schedule.share_done(step), self._count_rows(step)
            inputs |= self.run.distillation.soften(inputs, done, rows)
        states = self.run.stream_states
        if states is None:
            return super().compute_loss(model, inputs, return_outputs, **options)
        stream, inputs = states.add_to(inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        states.store(stream, outputs.past_key_values)
        return (loss, outputs) if return_outputs else loss

    # One epoch flows into the next, and a run that continues finds its place without reading.
    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        run, steps = self.run, self.args.max_steps + 1
        # One step more than the run has: else the Trainer would not enter a run at its last step.
        last = max(self._count_rows(steps), steps * count_rows(self.args))
        first = 0
        if run.resume:
            first = last if run.resume.step >= run.schedule.end else run.resume.rows
        is_sequential = self.args.train_sampling_strategy == "sequential"
        seed = None if is_sequential or run.stream_states else self.args.data_seed
        blocks = self.train_dataset
        return ResumableSampler(
            self._count_items(),
            seed=seed,
            first=first,
            last=last,
            numbers_epochs=isinstance(blocks, BlockDataset) and blocks.seed is not None,
        )

    # The Trainer takes the sampler's length for one epoch.
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the epoch that the rows read so far make."""
        self.state.epoch = self._count_rows(self.state.global_step) / self._count_items()
        super().log(logs, start_time)

    # Fetching the first batch moves the random state, so a run is restored after that.
    def get_batch_samples(self, *args: Any) -> Any:
        """Fetch the batches of a step, and restore what a run had at the step it continues from."""
        samples = super().get_batch_samples(*args)
        resume = self.run.resume
        if resume and self.state.global_step == resume.step:
            self._tr_loss += resume.loss
            self._globalstep_last_logged = resume.logged_step
            if resume.evaluation_due:
                self.control.should_evaluate = True
                super()._maybe_log_save_evaluate(
                    self._tr_loss, None, self.model, None, 0, None, 0.0
                )
            super()._load_rng_state(str(self.run.checkpoint))
        return samples

    # The Trainer loads it before the first batch is fetched; `get_batch_samples` does so after.
    def _load_rng_state(self, *_: Any) -> None:
        pass

    # The Trainer evaluates before it saves, and an evaluation that fails must cost no training.
    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        self.evaluation_due, self.control.should_evaluate = self.control.should_evaluate, False
        with self.run.clock.evaluating(with_evaluation=self.evaluation_due):
            super()._maybe_log_save_evaluate(*args, **options)
            if self.evaluation_due:
                self.control.should_evaluate = True
                super()._maybe_log_save_evaluate(*args, **options)

    # Training draws the same random numbers whether it is evaluated or not.
    def _evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        with preserve_random_state():
            metrics = super()._evaluate(*args, **options)
        best = self.run.checkpoints.record_score(
            self.state.global_step, metrics["eval_bits_per_byte"]
        )
        self.state.best_model_checkpoint = str(best) if best else None
        return metrics

    # Models are compared by bits per byte, which the Trainer's loss over tokens does not give.
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the model on held-out text in bits per byte."""
        model = self.gather_model()
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
        return self.run.callbacks.evaluate(model.to(self.args.device).eval())

    # Checkpoints are written beside, and renamed once they are complete.
    def _get_output_dir(self, trial: Any) -> str:
        return str(self.run.checkpoints.unfinished)

    # Weights that are no numbers must never take the place of good ones, and with several processes
    # all must have written their files before the checkpoint counts.
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._check_weights()
        state, step = self._resume_state(), self.state.global_step
        if self.is_fsdp_enabled:
            self.gather_model()
            self.gathered_state = gather_optimizer_state(cast(Any, self.optimizer))
        if self.run.stream_states:
            self.run.stream_states.gather()
        with self.run.checkpoints.writing(step, self.accelerator.wait_for_everyone) as folder:
            self._write_files(model, trial, folder, state)

    @distributed.raise_together
    def _write_files(self, model: Any, trial: Any, folder: Path, state: ResumeState) -> None:
        """Write this process's files. Nothing here waits for the others, of which one may fail."""
        with explain_failed_writes(self.run.checkpoints.folder):
            super()._save_checkpoint(model, trial)
        if distributed.is_main():
            if self.run.stream_states:
                self.run.stream_states.save(folder)
            write_resume_state(folder, state)

    # With FSDP2 the Trainer saves shards, which as many processes must load again.
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, with FSDP2 the one that `gather_model` filled."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self.full_model.save_pretrained(output_dir or self.args.output_dir)

    # With FSDP2 full tensors are saved, as in `save_model`.
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            torch.save(self.gathered_state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    # With FSDP2 full weights are loaded before the model is sharded.
    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        if self.is_fsdp_enabled and resume_from_checkpoint:
            load_model(self.model, Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    # With FSDP2 `_prepare_for_training` has loaded the weights already.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    # With FSDP2 each process takes its shard of the full tensors, of which it maps the file.
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            read: dict[str, Any] = {"map_location": "cpu", "weights_only": True, "mmap": True}
            packed = torch.load(Path(checkpoint) / OPTIMIZER_NAME, **read)
            load_optimizer_state(cast(Any, self.optimizer), packed)
            schedule = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
            self.lr_scheduler.load_state_dict(schedule)

    def gather_model(self) -> CausalModel:
        """Return the model with all its weights, on the main process. All processes call this."""
        if not self.is_fsdp_enabled:
            return self.accelerator.unwrap_model(self.full_model)
        gather_weights(self.model, self.full_model)
        return self.full_model

    def load_best_weights(self) -> int:
        """Load the weights of the best evaluation where a later one was worse, and return the step.

        With FSDP2 only `full_model` gets them. All processes must call this.
        """
        step = self.run.checkpoints.find_better(self.state.global_step)
        if step is None:
            return self.state.global_step
        distributed.raise_together(self._load_weights)(self.run.checkpoints.path_of(step))
        return step

    def _load_weights(self, checkpoint: Path) -> None:
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(str(checkpoint))
        elif distributed.is_main():
            load_model(self.full_model, checkpoint / SAFE_WEIGHTS_NAME)

    def _count_rows(self, steps: int) -> int:
        """Count the rows that all processes have read after so many steps."""
        return steps * count_rows(self.args) + self.extra_rows

    def _count_items(self) -> int:
        return len(cast(Any, self.train_dataset))

    def _resume_state(self) -> ResumeState:
        run, step = self.run, self.state.global_step
        return ResumeState(
            step=step,
            planned_steps=run.planned_steps,
            schedule=run.schedule.state(),
            rows=self._count_rows(step),
            seconds=run.clock.total_seconds(),
            clock=run.clock.state(),
            evaluation_due=self.evaluation_due,
            loss=self.accelerator.gather(self._tr_loss.reshape(1)).mean().item(),
            logged_step=self._globalstep_last_logged,
            bf16=self.args.bf16,
            threads=torch.get_num_threads(),
            description=run.description,
        )

    def _check_weights(self) -> None:
        """Raise `RunError` when a weight, on any process, is no number."""
        parts = [self._tr_loss, *(to_local(parameter) for parameter in self.model.parameters())]
        bad = sum((~torch.isfinite(part).all()).long() for part in parts)
        if self.accelerator.reduce(torch.as_tensor(bad, device=self.args.device)).item():
            rate = self._get_learning_rate()
            raise divergence_error(
                "the weights are no numbers", self.state.global_step, rate, self.args
            )
