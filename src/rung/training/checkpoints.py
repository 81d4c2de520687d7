"""Checkpoints: written beside, sealed, synced and renamed, so that no kill damages one.

checkpoint-N/        weights, optimizer, schedule, random states of each process, stream states
    progress.json    how far the run is, and a description of the run
    manifest.json    size and digest of every file: a checkpoint that differs from it is damaged
best.json            the step whose checkpoint had the fewest bits per byte
.saving/             the checkpoint being written; a kill's remains are removed at the next start
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from rung import distributed, files, runs
from rung.errors import RunError
from rung.full_disk import explain_failed_writes
from rung.training.arguments import DEFAULT_ARGUMENTS

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
BEST = "best.json"
SAVING = ".saving"
# The Trainer adds a pickle that nothing reads.
UNREAD_FILES = ("training_args.bin",)
# Fields of the configuration that are about the file, not the model.
FILE_FIELDS = (
    "transformers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "use_cache",
)
# Settings that may change from one start of a run to the next. The rows of a step are among them:
# another number of processes may need another number of rows.
CHANGEABLE_SETTINGS = ("arguments", "began", "global_batch_size")
# How the fields of TrainingArguments begin that may change too.
CHANGEABLE_PREFIXES = (
    *("logging_", "eval_", "save_", "report_to", "run_name", "dataloader_", "per_device_"),
    *("gradient_", "bf16", "fp16", "tf32", "torch_compile", "use_cpu", "fsdp", "ddp_"),
    *("deepspeed", "accelerator_"),
)
# Fields of `ResumeState` that have another key in the file.
RESUME_KEYS = {
    "planned_steps": "planned",
    "schedule": "pace",
    "evaluation_due": "evaluate",
    "logged_step": "logged",
    "description": "made",
}


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """How far a run is, beyond what the Trainer's own files say."""

    step: int
    planned_steps: int  # as planned when the run was begun
    schedule: dict[str, float]  # of the learning rate; the clock may have moved its end
    rows: int  # of the text that all processes have read
    seconds: float  # since the run was begun, over all its starts, without what was lost
    clock: dict[str, float]  # what `Clock.state` returned
    evaluation_due: bool  # an evaluation follows this checkpoint
    loss: float  # summed over the steps after `logged_step`
    logged_step: int  # of the last line in the metrics
    # The faster precision is measured, and sums are rounded otherwise with other threads: a run
    # keeps both. Checkpoints of older versions have no number of threads.
    bf16: bool
    threads: int | None
    description: dict[str, Any]  # of the model and the settings

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Self:
        """Make the state that a checkpoint's file describes."""
        facts = {"threads": None} | facts
        return cls(**{f.name: facts[RESUME_KEYS.get(f.name, f.name)] for f in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint's file holds."""
        return {RESUME_KEYS.get(name, name): value for name, value in asdict(self).items()}


def describe_run(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Describe the model and the settings, so that another run's checkpoint is told apart."""
    model = {key: value for key, value in config.items() if key not in FILE_FIELDS}
    recipe = {key: value for key, value in settings.items() if key not in CHANGEABLE_SETTINGS}
    recipe |= {
        f"train.{key}": value
        for key, value in settings["arguments"].items()
        if not key.startswith(CHANGEABLE_PREFIXES)
    }
    return json.loads(json.dumps({"model": model, "recipe": recipe}, default=str))


def find_checkpoints(folder: Path) -> list[Path]:
    """List the run's checkpoints, damaged ones among them, the latest first."""
    found = [
        path
        for path in (folder / runs.CHECKPOINTS).glob("checkpoint-*")
        if path.name.rsplit("-", 1)[1].isdigit()
    ]
    return sorted(found, key=step_of, reverse=True)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the latest undamaged checkpoint, if there is one, and warn of damaged ones after it.

    Raises `RunError` when there are checkpoints and all are damaged.
    """
    found = find_checkpoints(folder)
    damages: dict[Path, str] = {}
    for path in found:
        damage = files.find_damage(path, PROGRESS)
        if damage is None:
            for other, what in damages.items():
                logger.warning("%s is damaged (%s): going on from %s", other, what, path.name)
            return path
        damages[path] = damage
    if damages:
        listed = "; ".join(f"{path.name}: {what}" for path, what in damages.items())
        raise RunError(
            f"every checkpoint in {found[0].parent} is damaged ({listed}): delete it to begin again"
        )
    return None


def read_resume_state(checkpoint: Path, description: dict[str, Any]) -> ResumeState:
    """Read how far the checkpoint's run is.

    Raises `RunError` when the checkpoint is another run's, whose model or settings differ from
    `description`.
    """
    state = ResumeState.from_json(json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))
    for kind, here in description.items():
        # A setting that the checkpoint does not name had its default, which is chosen by now.
        defaults = {f"train.{key}": value for key, value in DEFAULT_ARGUMENTS.items()}
        there = {key: defaults[key] for key in here if key in defaults} | state.description[kind]
        for key in sorted((here.keys() | there.keys()) - {*CHANGEABLE_SETTINGS}):
            if here.get(key) != there.get(key):
                raise RunError(
                    f"{checkpoint} is of another {kind}: {key} is {there.get(key)!r} there and "
                    f"{here.get(key)!r} here; choose another folder with --out"
                )
    return state


def write_resume_state(checkpoint: Path, state: ResumeState) -> None:
    """Add how far the run is to a checkpoint that is being written."""
    text = files.to_json(state.to_json(), indent=2)
    (checkpoint / PROGRESS).write_text(f"{text}\n", encoding="utf-8")


class Checkpoints:
    """The checkpoints of a run.

    Only the main process writes and removes what all share. `keep` is how many of the last ones
    are kept, beside the best.
    """

    def __init__(self, run: Path, *, keep: int | None, is_main: bool) -> None:
        self.run = run
        self.folder = run / runs.CHECKPOINTS
        self.unfinished = self.folder / SAVING
        self.keep = keep
        self.is_main = is_main
        self.best: tuple[int, float] | None = None  # step, bits per byte

    def path_of(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.folder / f"checkpoint-{step}"

    def open(self, step: int) -> None:
        """Remove what a kill left unfinished, and read which checkpoint so far is the best."""
        if self.is_main:
            shutil.rmtree(self.unfinished, ignore_errors=True)
        try:
            best = json.loads((self.folder / BEST).read_text(encoding="utf-8"))
            self.best = (best["step"], best["bits_per_byte"]) if best["step"] <= step else None
        except (OSError, ValueError, KeyError, TypeError):
            self.best = None

    @contextmanager
    def writing(self, step: int, wait: Callable[[], None]) -> Iterator[Path]:
        """Give a folder to write the checkpoint of `step` into, and commit it at the end.

        The checkpoint counts from one moment on, once all processes are done with it; in `wait`
        they meet. Raises `RunError` when there is no room; earlier checkpoints are kept.
        """
        beside = self.unfinished / self.path_of(step).name
        if self.is_main:
            shutil.rmtree(self.unfinished, ignore_errors=True)
        wait()
        try:
            with explain_failed_writes(self.folder):
                beside.mkdir(parents=True, exist_ok=True)
                yield beside
                wait()
                self._commit(beside)
        finally:
            if self.is_main:
                shutil.rmtree(self.unfinished, ignore_errors=True)
        wait()

    def record_score(self, step: int, bits_per_byte: float) -> Path | None:
        """Note the score of a step, and return the best checkpoint so far, if there is one."""
        is_saved = math.isfinite(bits_per_byte) and self.path_of(step).is_dir()
        if is_saved and (self.best is None or bits_per_byte <= self.best[1]):
            self.best = (step, bits_per_byte)
            if self.is_main:
                best = files.to_json({"step": step, "bits_per_byte": bits_per_byte})
                files.write_atomically(self.folder / BEST, f"{best}\n")
                self._prune(step)
        return self.path_of(self.best[0]) if self.best else None

    def find_better(self, step: int) -> int | None:
        """Return the step of the best checkpoint, if it is another than `step` and undamaged.

        All processes must call this.
        """
        better = self.best[0] if self.best and self.best[0] != step else None
        damage = self._find_damage_at(better)
        if damage:
            logger.warning(
                "the best checkpoint, step %d, is damaged (%s): the last weights are kept",
                better,
                damage,
            )
        return None if damage else better

    @distributed.on_main
    def _find_damage_at(self, step: int | None) -> str | None:
        return None if step is None else files.find_damage(self.path_of(step), PROGRESS)

    @distributed.on_main
    def _commit(self, written: Path) -> None:
        for name in UNREAD_FILES:
            (written / name).unlink(missing_ok=True)
        files.write_manifest(written, hashed_bytes=math.inf)
        # No line may be lost that the checkpoint is beyond.
        for name in (runs.METRICS, runs.SAMPLES):
            if (self.run / name).exists():
                files.sync(self.run / name)
        home = self.folder / written.name
        # One that is there already is damaged, or the run would have continued from it.
        files.move_into_place(written, home)
        self._prune(step_of(home))

    def _prune(self, step: int) -> None:
        """Keep the last checkpoints and the best.

        Those beyond `step` are damaged: the run continued from one before them.
        """
        found = find_checkpoints(self.run)
        present = [path for path in found if step_of(path) <= step]
        kept = present[: self.keep] + [
            path for path in present if self.best and step_of(path) == self.best[0]
        ]
        for path in found:
            if path not in kept:
                # Renamed first, so that it is gone in one moment.
                away = self.unfinished / f"old-{path.name}"
                away.parent.mkdir(exist_ok=True)
                path.replace(away)
                shutil.rmtree(away, ignore_errors=True)
        shutil.rmtree(self.unfinished, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(checkpoint.name.rsplit("-", 1)[1])
