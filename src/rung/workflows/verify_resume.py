"""Verify that a killed run loses nothing: compare it with the same run left uninterrupted.

Both runs have the same recipe, and are made in processes of their own, as `rung train` and
`rung train --resume` make them. One of them is ended by SIGKILL at random moments: while it
starts, between two instructions of a step, while it saves a checkpoint, and while it is scored.
"""

import contextlib
import functools
import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rung import runs
from rung.data.corpus import corpus_title
from rung.errors import RecipeError, RunError, RungError
from rung.progress import OnProgress, Progress, for_run, ignore_progress
from rung.recipe import Recipe, leave_length_open, make_recipe, read_recipe
from rung.training.checkpoints import SAVING
from rung.workflows.train import execute

STEPS = 60  # of a run whose recipe gives minutes
PHASES = ("starting", "training", "saving", "ending")
# How far before the first step and after the last one kills may fall, as shares of all steps.
BEFORE, AFTER = 0.05, 0.1
POLL = 0.0005  # seconds to wait for a message of the process


@dataclass(frozen=True, kw_only=True)
class Kill:
    """The place of a kill in a run: the steps done before it, and its phase, one of `PHASES`."""

    step: int
    phase: str


@dataclass(frozen=True, kw_only=True)
class Made:
    """The outputs of a run that kills must not change."""

    metrics: list[dict[str, Any]]
    samples: str
    weights: str  # SHA-256 of their file
    scores: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outputs of the uninterrupted run and of the killed ones, and their differences.

    There are several killed runs if the first one finished before all kills had fallen.
    """

    recipe: Recipe
    kills: list[Kill]
    whole: Made
    resumed: list[Made]
    failure: str | None  # the error of a killed run that could not go on

    @property
    def differences(self) -> list[str]:
        """Return the names of the outputs that are not equal to the last bit."""
        names = ("metrics", "samples", "weights", "scores")
        return [
            name
            for name in names
            if any(getattr(made, name) != getattr(self.whole, name) for made in self.resumed)
        ]

    @property
    def is_equal(self) -> bool:
        """Return whether all killed runs finished with the outputs of the uninterrupted one."""
        return self.failure is None and bool(self.resumed) and not self.differences

    def losses(self) -> list[tuple[int, float, float | None]]:
        """Return (step, loss of the uninterrupted run, loss of a killed run) of each logged step.

        The killed run is one whose metrics differ, if there is one.
        """
        other = next((made for made in self.resumed if made.metrics != self.whole.metrics), None)
        other = other or (self.resumed[0] if self.resumed else None)
        theirs = (
            {line["step"]: line["loss"] for line in other.metrics if "loss" in line}
            if other
            else {}
        )
        return [
            (line["step"], line["loss"], theirs.get(line["step"]))
            for line in self.whole.metrics
            if "loss" in line
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict with the keys of `--json`."""
        fell = Counter(kill.phase for kill in self.kills)
        return {
            "rung": self.recipe.rung,
            "corpus": corpus_title(self.recipe.corpus),
            "steps": self.recipe.steps,
            "equal": self.is_equal,
            "differences": self.differences,
            "failure": self.failure,
            "kills": len(self.kills),
            "fell": {phase: fell[phase] for phase in PHASES},
            "killed_at": [kill.step for kill in self.kills],
            "losses": [{"step": s, "uninterrupted": a, "resumed": b} for s, a, b in self.losses()],
        }


def read_source(source: Path, steps: int | None = None) -> Recipe:
    """Read the recipe of a run's folder or of a recipe's file, and set its number of steps.

    Without `steps`, the recipe keeps its own number, or gets `STEPS` if it has none. Raises
    `RungError` if there is no recipe, or if its rung is fitted by counting.
    """
    page = runs.read_record(source).get("recipe") if source.is_dir() else read_recipe(source)
    if page is None:
        raise RunError(f"{source} was imported, not trained: there is nothing to resume")
    recipe = make_recipe(page)
    if recipe.entry.counts:
        raise RecipeError(
            f"{recipe.rung} is fitted by counting, and takes no steps to be killed at: choose a "
            f"rung that is trained"
        )
    return make_recipe({**leave_length_open(page), "steps": steps or recipe.steps or STEPS})


def verify_resume(
    recipe: Recipe,
    kills: int,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
    seed: int = 0,
) -> Verdict:
    """Make the recipe's run once uninterrupted and once with `kills` kills, and compare the two.

    All runs stay below `folder`, and `seed` decides when the kills fall. Raises `RungError` if the
    uninterrupted run cannot be made.
    """
    whole = _Run(recipe, folder / "uninterrupted", for_run("uninterrupted", on_progress))
    whole.start(until=None)
    if whole.failure:
        raise RunError(whole.failure)
    fallen: list[Kill] = []
    resumed: list[Made] = []
    failure = None

    def show_kills(progress: Progress) -> None:
        on_progress(_count_kills(progress, fallen, kills))

    moments = _plan(recipe.steps or 0, kills, random.Random(seed))
    while failure is None and (moments or not resumed):
        run, before = (
            _Run(recipe, folder / f"killed-{len(resumed) + 1}", show_kills, whole.times),
            len(fallen),
        )
        while not run.finished and run.failure is None:
            kill = run.start(until=moments[0] if moments else None)
            if kill:
                fallen.append(kill)
                moments.pop(0)
        failure = run.failure
        resumed.extend([run.read()] if run.finished else [])
        # A run without a kill never saved, or was at its end too soon: kill the next in training.
        if moments and len(fallen) == before:
            moments[0] = replace(moments[0], where="training")
    return Verdict(
        recipe=recipe, kills=fallen, whole=whole.read(), resumed=resumed, failure=failure
    )


@dataclass(frozen=True, kw_only=True)
class _Moment:
    """The moment of a kill: in the phase `where`, and not before `step`.

    `late`, from 0 to 1, is the share of that phase, or of a training step, that passes first.
    """

    step: int
    where: str
    late: float


@dataclass(kw_only=True)
class _PhaseTimes:
    """The seconds that each phase of the uninterrupted run took."""

    starting: float = 0.0
    step: float = 0.0
    saving: float = 0.0
    ending: float = 0.0


def _plan(steps: int, kills: int, dice: random.Random) -> list[_Moment]:
    """Draw random moments, in the order in which a run reaches them.

    Every other moment in training waits for a save.
    """
    moments = []
    for number, place in enumerate(sorted(dice.uniform(-BEFORE, 1 + AFTER) for _ in range(kills))):
        where = "starting" if place < 0 else "ending" if place > 1 else PHASES[1 + number % 2]
        moments.append(
            _Moment(step=min(int(place * steps), steps - 1), where=where, late=dice.random())
        )
    return moments


def _count_kills(progress: Progress, fallen: list[Kill], kills: int) -> Progress:
    in_saves = sum(kill.phase == "saving" for kill in fallen)
    where = progress.stage
    if progress.total:
        where += f" {progress.done}/{progress.total}"
    note = f"{in_saves} in a save; {where}"
    return Progress(stage="kills", done=len(fallen), total=kills, note=note, run="killed")


@dataclass
class _Run:
    """A run that is made by one process after another, until it is finished."""

    recipe: Recipe
    folder: Path
    on_progress: OnProgress
    times: _PhaseTimes = field(default_factory=_PhaseTimes)
    finished: bool = False
    failure: str | None = None
    step: int = 0
    phase: str = "starting"

    def start(self, until: _Moment | None) -> Kill | None:
        """Start or resume the run in a new process, and kill the process at the moment `until`.

        Return None if the run finished or failed before that moment.
        """
        context = _find_context()
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_make, args=(self.recipe, self.folder, there), daemon=True)
        self.phase, saved_before, watch = "starting", self._saving(), _Watch()
        process.start()
        there.close()
        try:
            while self._hear(here):
                saving = self._saving() not in (None, saved_before)
                watch.see(self.phase, self.step, saving)
                if until and self._is_time(until, saving):
                    time.sleep(
                        until.late
                        * getattr(self.times, "step" if until.where == "training" else until.where)
                    )
                    break
        finally:
            process.kill()
            process.join()
        if not (self.finished or self.failure):
            self._hear_out(here)
        if self.finished:
            self.times = watch.find_times(self.recipe.steps or 1)
        if self.finished or self.failure or until is None:
            return None
        in_save = self._saving() not in (None, saved_before)
        return Kill(step=self.step, phase="saving" if in_save else self.phase)

    def read(self) -> Made:
        """Read the outputs of the finished run."""
        return Made(
            metrics=runs.read_metrics(self.folder),
            samples=(self.folder / runs.SAMPLES).read_text(encoding="utf-8"),
            weights=hashlib.sha256((self.folder / "model.safetensors").read_bytes()).hexdigest(),
            scores={
                key: value
                for key, value in runs.read_record(self.folder)["scores"]["test"].items()
                if key != "seconds"
            },
        )

    def _hear(self, connection: Connection) -> bool:
        """Handle a message of the process, if there is one; return False once the process ends."""
        if not connection.poll(POLL):
            return True
        try:
            return self._take(*connection.recv())
        except EOFError:
            log = (
                self.folder.with_suffix(".log")
                .read_text(encoding="utf-8", errors="replace")
                .strip()
            )
            self.failure = (
                f"the process ended by itself: {(log.splitlines() or ['it said nothing'])[-1]}"
            )
            return False

    def _take(self, kind: str, said: Any) -> bool:
        if kind != "progress":
            self.finished, self.failure = kind == "finished", said
            return False
        if said.stage == "training":
            self.phase, self.step = "training", said.done
        elif self.phase == "training" or said.stage in ("scoring", "comparing"):
            self.phase = "ending"
        self.on_progress(said)
        return True

    def _hear_out(self, connection: Connection) -> None:
        """Handle the messages that were sent before the kill. The last one may be cut short."""
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while connection.poll() and self._take(*connection.recv()):
                pass

    def _is_time(self, until: _Moment, saving: bool) -> bool:
        if until.where in ("starting", self.phase):
            return until.where != "training" or self.step >= until.step
        if until.where == "saving":
            return saving and self.phase == "training" and self.step >= until.step
        return until.where == "ending" and self.step >= (self.recipe.steps or 0)

    def _saving(self) -> tuple[int, int] | None:
        """Identify the checkpoint that is being written, or was when the process ended."""
        try:
            found = (self.folder / runs.CHECKPOINTS / SAVING).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns


@functools.cache
def _find_context() -> Any:
    """Return the context that starts processes fastest on this system.

    A fork server imports this module once, so that a start takes a moment instead of seconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Watch:
    """A record of when phases, steps and saves begin, from which their lengths follow."""

    def __init__(self) -> None:
        self.began: dict[Any, float] = {"starting": time.perf_counter()}
        self.saves: list[float] = []
        self.save_began: float | None = None

    def see(self, phase: str, step: int, saving: bool) -> None:
        """Record the present phase and step, and whether a checkpoint is being saved."""
        now = time.perf_counter()
        self.began.setdefault(phase, now)
        self.began.setdefault(step, now)
        if saving and self.save_began is None:
            self.save_began = now
        if not saving and self.save_began is not None:
            self.saves.append(now - self.save_began)
            self.save_began = None

    def find_times(self, steps: int) -> _PhaseTimes:
        """Return the seconds of each phase, of a step on average, and of the shortest save."""
        now, training = time.perf_counter(), self.began.get("training", self.began["starting"])
        last = self.began.get(steps, now)
        return _PhaseTimes(
            starting=training - self.began["starting"],
            step=(last - training) / steps,
            saving=min(self.saves, default=0.0),
            ending=now - last,
        )


def _make(recipe: Recipe, folder: Path, connection: Connection) -> None:
    """Make the run, or resume it from its last checkpoint, and send its progress to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    # By default tqdm takes a semaphore of the system, which a killed process leaves behind.
    tqdm.set_lock(threading.RLock())
    try:
        execute(recipe, folder, lambda progress: connection.send(("progress", progress)))
        connection.send(("finished", None))
    except RungError as error:
        connection.send(("failed", str(error)))
