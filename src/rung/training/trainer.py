"""The Trainer, so that a run which was killed at any moment goes on as if it had not been: the same
losses to the bit.

Saved before an evaluation, never after: what an evaluation takes or breaks costs no training. A run
that goes on evaluates again what it was to evaluate, with the random numbers of before, and finds
its place in the text at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Sampler
from transformers import TrainerControl

from rung import distributed, runs
from rung.training.checkpoints import Checkpoints, Standing
from rung.training.clock import Clock
from rung.training.global_batch import count_rows
from rung.training.recorder import diverged, untouched_randomness
from rung.training.sampler import ResumableSampler
from rung.training.schedule import WSDSchedule
from rung.training.sharding import ShardedTrainer, local
from rung.training.tbptt import StreamStates


@dataclass(kw_only=True)
class Keeping:
    """What a run keeps to be taken up again, and where it goes on: from the checkpoint `resumed`,
    if any.
    """

    checkpoints: Checkpoints
    clock: Clock
    pace: WSDSchedule
    planned: int  # steps
    made: dict[str, Any]
    resumed: Path | None
    standing: Standing | None
    # That were read than steps of so many rows as now make: below 0 where steps had fewer before.
    more_rows: int = 0

    def take_up(self, carried: StreamStates | None) -> None:
        """Put back what the Trainer does not; what the run wrote beyond the checkpoint is written
        again.
        """
        step = self.standing.step if self.standing else 0
        self.checkpoints.take_up(step)
        if self.standing is None or self.resumed is None:
            return
        vars(self.pace).update(self.standing.pace)
        if self.checkpoints.is_main:
            runs.rewind(self.checkpoints.run, step, evaluate=self.standing.evaluate)
        if carried:
            carried.load(self.resumed)


class ResumableTrainer(ShardedTrainer):
    """The Trainer with rung's checkpoints and rung's order of the text, in which one epoch flows
    into the next.
    """

    keeping: Keeping | None = None
    carried: StreamStates | None = None
    control: TrainerControl
    evaluation_is_due = False

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        # Of a step more: else the Trainer would not enter a run at its last step.
        last = max(
            self._count_rows(self.args.max_steps + 1),
            (self.args.max_steps + 1) * count_rows(self.args),
        )
        first = 0
        if self.keeping and self.keeping.standing:
            standing = self.keeping.standing
            first = last if standing.step >= self.keeping.pace.end else standing.rows
        as_it_stands = self.carried is not None or self.args.train_sampling_strategy == "sequential"
        seed = None if as_it_stands else self.args.data_seed
        return ResumableSampler(
            len(cast(Any, self.train_dataset)), seed=seed, first=first, last=last
        )

    def _count_rows(self, steps: int) -> int:
        """Rows that all processes have read by then."""
        return steps * count_rows(self.args) + (self.keeping.more_rows if self.keeping else 0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's; its epoch is the whole row of them that it was given."""
        self.state.epoch = self._count_rows(self.state.global_step) / len(
            cast(Any, self.train_dataset)
        )
        super().log(logs, start_time)

    def get_batch_samples(self, *args: Any) -> Any:
        """The Trainer's; a run that goes on does so once its first batch is there: to draw one
        moves the randomness.
        """
        samples = super().get_batch_samples(*args)
        if self.keeping and self.keeping.standing:
            standing, self.keeping.standing = self.keeping.standing, None
            self._tr_loss += standing.loss
            self._globalstep_last_logged = standing.logged
            if standing.evaluate:
                self.control.should_evaluate = True
                super()._maybe_log_save_evaluate(
                    self._tr_loss, None, self.model, None, 0, None, 0.0
                )
            super()._load_rng_state(str(self.keeping.resumed))
        return samples

    def _load_rng_state(self, *_: Any) -> None:
        """Later: see `get_batch_samples`."""

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        """The Trainer's, in another order: log, save, then evaluate."""
        self.evaluation_is_due, self.control.should_evaluate = self.control.should_evaluate, False
        clock = self.keeping.clock if self.keeping else Clock()
        with clock.looking(with_evaluation=self.evaluation_is_due):
            super()._maybe_log_save_evaluate(*args, **options)
            if self.evaluation_is_due:
                self.control.should_evaluate = True
                super()._maybe_log_save_evaluate(*args, **options)

    def _evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        with untouched_randomness():
            metrics = super()._evaluate(*args, **options)
        if self.keeping:
            best = self.keeping.checkpoints.mark_best(
                self.state.global_step, metrics["eval_bits_per_byte"]
            )
            self.state.best_model_checkpoint = str(best) if best else None
        return metrics

    def keep_best(self) -> int:
        """Put back the weights that the best evaluation found, where a later one found worse; the
        step they are of.
        """
        assert self.keeping is not None
        checkpoints = self.keeping.checkpoints
        step = checkpoints.find_better(self.state.global_step)
        if step is None:
            return self.state.global_step
        distributed.raise_together(self.put_back)(checkpoints.folder / f"checkpoint-{step}")
        return step

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        """The Trainer's, beside; weights that are no numbers never take the place of good ones."""
        assert self.keeping is not None
        self._check_weights()
        checkpoints, standing = self.keeping.checkpoints, self._standing(self.keeping)
        save = super()._save_checkpoint
        self.gather()
        if self.carried:
            self.carried.gather()
        with checkpoints.saving(
            self.state.global_step, self.accelerator.wait_for_everyone
        ) as beside:
            write = distributed.raise_together(self._write)
            write(beside, standing, lambda: save(*args, **options))

    def _write(self, beside: Path, standing: Standing, save: Callable[[], None]) -> None:
        """This process's files of a checkpoint: nothing in it waits for the others, of which one
        may fail.
        """
        home, self.args.output_dir = self.args.output_dir, str(beside)
        try:
            with runs.explain_failed_writes(Path(home)):
                save()
        finally:
            self.args.output_dir = home
        if distributed.is_main():
            if self.carried:
                self.carried.save(beside / f"checkpoint-{self.state.global_step}")
            cast(Keeping, self.keeping).checkpoints.write_standing(standing, beside)

    def _standing(self, keeping: Keeping) -> Standing:
        return Standing(
            step=self.state.global_step,
            planned=keeping.planned,
            pace=dict(vars(keeping.pace)),
            rows=self._count_rows(self.state.global_step),
            seconds=keeping.clock.total(),
            clock=keeping.clock.keep(),
            evaluate=self.evaluation_is_due,
            loss=self.accelerator.gather(self._tr_loss.reshape(1)).mean().item(),
            logged=self._globalstep_last_logged,
            bf16=self.args.bf16,
            threads=torch.get_num_threads(),
            made=keeping.made,
        )

    def _check_weights(self) -> None:
        """Raise `RunError` when a weight, on any process, is no number."""
        parts = [self._tr_loss, *(local(parameter) for parameter in self.model.parameters())]
        bad = sum((~torch.isfinite(part).all()).long() for part in parts)
        if self.accelerator.reduce(torch.as_tensor(bad, device=self.args.device)).item():
            raise diverged(
                "the weights are no numbers",
                self.state.global_step,
                self._get_learning_rate(),
                self.args,
            )
