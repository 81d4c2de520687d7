"""Checkpoints: written beside, sealed, synced and renamed, so that no kill and no full disk costs
the one before.

checkpoint-N/        weights, optimizer, schedule, random numbers of each process, carried states
    progress.json    how far the run is, and what it is a run of
    manifest.json    size and digest of every file: what does not agree is damaged, and passed over
best.json            the step whose checkpoint had the fewest bits per byte
.saving/             one being written; what a kill leaves there is removed at the next start
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rung import distributed, files, runs
from rung.errors import RunError

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
BEST = "best.json"
SAVING = ".saving"
NEVER_READ = ("training_args.bin",)  # a pickle that the Trainer adds
# Fields of the configuration that are about the file, not the model.
ABOUT_FILES = (
    "transformers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "use_cache",
)
# Settings that may change from one start of a run to the next: the rows of a step, for another
# number of processes,
SPREAD = ("arguments", "began", "global_batch_size")
# and arguments: how it is watched, and over what it is spread.
MAY_CHANGE = (
    *(
        "logging_",
        "eval_",
        "save_",
        "report_to",
        "run_name",
        "dataloader_",
        "per_device_",
        "gradient_",
    ),
    *(
        "bf16",
        "fp16",
        "tf32",
        "torch_compile",
        "use_cpu",
        "fsdp",
        "ddp_",
        "deepspeed",
        "accelerator_",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a run is, beyond what the Trainer's own files say."""

    step: int
    planned: int  # steps, as they were planned at the start
    pace: dict[str, float]  # of the learning rate, its end moved by the clock or not
    rows: int  # of the text read, by all processes
    seconds: float  # since the run was begun, all its starts together, what was lost left out
    clock: dict[str, float]  # what is left of its minutes, and what steps and looks take
    evaluate: bool  # an evaluation was due, and comes after the save
    loss: float  # summed since the last line of the metrics, over the steps after `logged`
    logged: int
    bf16: bool  # which of two is faster is measured: a run that goes on is not to find otherwise
    threads: int | None  # neither is it to add up in another order; None in older checkpoints
    made: dict[str, Any]  # the model and the settings


def describe_run(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint is of: by this another run is told apart."""
    model = {key: value for key, value in config.items() if key not in ABOUT_FILES}
    recipe = {key: value for key, value in settings.items() if key not in SPREAD}
    recipe |= {
        f"train.{key}": v
        for key, v in settings["arguments"].items()
        if not key.startswith(MAY_CHANGE)
    }
    return json.loads(json.dumps({"model": model, "recipe": recipe}, default=str))


def find_checkpoints(folder: Path) -> list[Path]:
    """The run's checkpoints, the latest first, whole or not."""
    found = [
        p
        for p in (folder / runs.CHECKPOINTS).glob("checkpoint-*")
        if p.name.rsplit("-", 1)[1].isdigit()
    ]
    return sorted(found, key=step_of, reverse=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that is whole; those that are not are passed over with a warning.

    Raises `RunError` when there are some and all are damaged.
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


def read_standing(checkpoint: Path, made: dict[str, Any]) -> Standing:
    """How far the checkpoint's run is.

    Raises `RunError` when it is another run's: not of the model and the settings in `made`.
    """
    facts = {"threads": None} | json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
    standing = Standing(**{f.name: facts[f.name] for f in fields(Standing)})
    for kind, here in made.items():
        there = standing.made[kind]
        for key in sorted((here.keys() | there.keys()) - {*SPREAD}):
            if here.get(key) != there.get(key):
                raise RunError(
                    f"{checkpoint} is of another {kind}: {key} is {there.get(key)!r} there and "
                    f"{here.get(key)!r} "
                    "here; choose another folder with --out"
                )
    return standing


class Checkpoints:
    """The checkpoints of a run; what is shared by its processes, only the main one writes and
    removes.
    """

    def __init__(self, run: Path, *, keep: int | None, is_main: bool) -> None:
        self.run = run
        self.folder = run / runs.CHECKPOINTS
        self.keep = keep  # so many of the last, and the best beside
        self.is_main = is_main
        self.best: tuple[int, float] | None = None  # step, bits per byte

    def take_up(self, step: int) -> None:
        """Go on from `step`: clear away what a kill left, and learn which of the checkpoints so far
        is the best.
        """
        if self.is_main:
            shutil.rmtree(self.folder / SAVING, ignore_errors=True)
        try:
            best = json.loads((self.folder / BEST).read_text(encoding="utf-8"))
            self.best = (best["step"], best["bits_per_byte"]) if best["step"] <= step else None
        except (OSError, ValueError, KeyError, TypeError):
            self.best = None

    @contextmanager
    def saving(self, step: int, wait: Callable[[], None]) -> Iterator[Path]:
        """A folder to write `checkpoint-STEP` into; it counts, in one moment, once all processes
        are done with it.

        `wait` lets them meet. Raises `RunError` when there is no room; what was saved before is
        kept.
        """
        beside = self.folder / SAVING
        if self.is_main:
            shutil.rmtree(beside, ignore_errors=True)
        wait()
        try:
            with runs.explain_failed_writes(self.folder):
                (beside / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
                yield beside
                wait()
                self._commit(beside / f"checkpoint-{step}")
        finally:
            if self.is_main:
                shutil.rmtree(beside, ignore_errors=True)
        wait()

    def write_standing(self, standing: Standing, beside: Path) -> None:
        """Add how far the run is to the checkpoint that is being written."""
        text = runs.to_json(asdict(standing), indent=2)
        (beside / f"checkpoint-{standing.step}" / PROGRESS).write_text(
            text + "\n", encoding="utf-8"
        )

    def mark_best(self, step: int, bits_per_byte: float) -> Path | None:
        """Hear how good the model is at `step`; the best checkpoint so far, if there is one."""
        is_saved = math.isfinite(bits_per_byte) and (self.folder / f"checkpoint-{step}").is_dir()
        if is_saved and (self.best is None or bits_per_byte <= self.best[1]):
            self.best = (step, bits_per_byte)
            if self.is_main:
                best = runs.to_json({"step": step, "bits_per_byte": bits_per_byte})
                files.write_atomically(self.folder / BEST, f"{best}\n")
                self._prune(step)
        return self.folder / f"checkpoint-{self.best[0]}" if self.best else None

    def find_better(self, step: int) -> int | None:
        """The step of the best checkpoint, if it is another than `step` and whole; all processes
        must call this.
        """
        better = self.best[0] if self.best and self.best[0] != step else None
        damage = self._find_damage(better)
        if damage:
            logger.warning(
                "the best checkpoint, step %d, is damaged (%s): the last weights are kept",
                better,
                damage,
            )
        return None if damage else better

    @distributed.on_main
    def _find_damage(self, step: int | None) -> str | None:
        return files.find_damage(self.folder / f"checkpoint-{step}", PROGRESS) if step else None

    @distributed.on_main
    def _commit(self, written: Path) -> None:
        if not self.is_main:
            return
        for name in NEVER_READ:
            (written / name).unlink(missing_ok=True)
        files.seal(written, hashed_bytes=math.inf)
        files.settle_folder(written)
        for name in (
            runs.METRICS,
            runs.SAMPLES,
        ):  # no line may be lost that the checkpoint is beyond
            if (self.run / name).exists():
                files.sync(self.run / name)
        home = self.folder / written.name
        if home.exists():  # damaged, or it would have been resumed from
            home.replace(written.with_name("damaged"))
        written.replace(home)
        files.sync(self.folder)
        self._prune(step_of(home))

    def _prune(self, step: int) -> None:
        """Keep the last ones and the best; those beyond `step` are damaged, and were passed
        over.
        """
        found = find_checkpoints(self.run)
        present = [path for path in found if step_of(path) <= step]
        kept = present[: self.keep] + [
            p for p in present if self.best and step_of(p) == self.best[0]
        ]
        for path in found:
            if path not in kept:
                away = self.folder / SAVING / f"old-{path.name}"  # gone in one moment, then deleted
                away.parent.mkdir(exist_ok=True)
                path.replace(away)
                shutil.rmtree(away, ignore_errors=True)
        shutil.rmtree(self.folder / SAVING, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The step that it is of."""
    return int(checkpoint.name.rsplit("-", 1)[1])
