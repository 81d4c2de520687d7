"""The climb: every rung on the same text, with the same tokenizer, sharing the time.

The minutes include reading, counting, training and scoring. What a rung leaves of its share, or
takes beyond it, is shared among those that are still to come. The trained rungs have as nearly as
possible the same number of parameters. Each rung is a run of its own below one folder; one that
fails does not take the others with it, and a climb that was stopped goes on where it stopped.
"""

import logging
import shlex
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rung import distributed, runs
from rung.data.files import DocumentKind
from rung.data.pairs import PairSet, find_probes
from rung.errors import RunError, RungError, first_line
from rung.ladder import LADDER, OFF_LADDER, is_counting
from rung.models import find_rung
from rung.models.sizes import resolve_size
from rung.progress import OnProgress, Progress, for_run, ignore_progress
from rung.recipe import Recipe, check_positive
from rung.report.page import write_report
from rung.training.checkpoints import find_checkpoints
from rung.training.clock import MIN_TRAINING_SHARE, now
from rung.workflows.corpus_check import warn_of_copies
from rung.workflows.pairs import open_pairs, record_pairs
from rung.workflows.prepare import DEFAULT_MINUTES, read_corpus
from rung.workflows.run_folder import read_begun
from rung.workflows.train import execute

logger = logging.getLogger(__name__)

REPORT = "report.html"
# The names under which is shown what all rungs share: reading the text, and scoring pairs.
TEXT, MINIMAL_PAIRS = "text", "minimal pairs"


@dataclass(frozen=True, kw_only=True)
class Climb:
    """The corpus to climb, the rungs, the minutes in all, and the folder of the runs.

    Scoring the minimal pairs comes after the minutes.
    """

    corpus: str | list[str] = "python-docs"
    documents: DocumentKind = "paragraphs"
    column: str | None = None
    encoding: str | None = None
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"kind": "bpe"})
    rungs: tuple[str, ...] = LADDER
    minutes: float = DEFAULT_MINUTES
    seed: int = 0
    folder: Path = Path("runs/climb")
    # A file or folder of minimal pairs, that the runs are scored on; None for the corpus's own.
    pairs: str | None = None

    def __post_init__(self) -> None:
        check_positive("minutes", self.minutes, float)

    def names(self) -> list[str]:
        """List the rungs, and sizes of them, in the order of the ladder."""
        for name in self.rungs:
            find_rung(name)
        order = [*LADDER, *OFF_LADDER]
        return sorted(
            dict.fromkeys(self.rungs), key=lambda name: order.index(resolve_size(name, {})[0])
        )

    def recipes(self) -> list[Recipe]:
        """Make a recipe for each rung, in the order of the ladder; trained ones share the time."""
        wanted = self.names()
        trained = [name for name in wanted if not is_counting(name)]
        return [
            Recipe(
                rung=name,
                corpus=self.corpus,
                documents=self.documents,
                column=self.column,
                encoding=self.encoding,
                tokenizer=self.tokenizer,
                minutes=self.minutes / len(trained) if name in trained else None,
                seed=self.seed,
            )
            for name in wanted
        ]


def climb(
    plan: Climb,
    on_progress: OnProgress = ignore_progress,
    began: float | None = None,
) -> list[Path]:
    """Make the runs that are not finished, and return the folders of all.

    The minutes count from `began` by `train.clock.now`, else from now; of a climb that goes on,
    those of the rungs that are not finished. Raises `RungError` when the whole climb cannot be,
    `KeyboardInterrupt` when it was stopped and saved.
    """
    recipes = dict(zip((plan.folder / name for name in plan.names()), plan.recipes(), strict=True))

    def report(begun: list[Path]) -> None:
        write_report(begun, plan.folder / REPORT)

    # Read before the climb, so that a mistake in them does not end it.
    source = plan.pairs or find_probes(plan.corpus)
    pairs = _read_pairs(source, on_progress) if source else None
    make_runs(recipes, on_progress, report, began)
    if pairs:
        _score_pairs(recipes, pairs, on_progress)
        _report(recipes, report)
    return list(recipes)


@distributed.on_main
def _read_pairs(source: str, on_progress: OnProgress) -> PairSet:
    return open_pairs(source, None, for_run(TEXT, on_progress))


@distributed.on_main
def _score_pairs(recipes: Iterable[Path], pairs: PairSet, on_progress: OnProgress) -> None:
    with runs.lock_folder(next(iter(recipes)).parent):
        record_pairs(recipes, pairs, for_run(MINIMAL_PAIRS, on_progress))
    on_progress(Progress(stage="done", run=MINIMAL_PAIRS))


def make_runs(
    recipes: dict[Path, Recipe],
    on_progress: OnProgress,
    report: Callable[[list[Path]], None],
    began: float | None = None,
) -> None:
    """Make each recipe's run in its folder, unless it is finished; `report` takes those begun,
    after each.

    Those that have minutes share them, from `began` on. The progress of each run has its folder's
    name, and ends with `done` or `failed`; that of the text, which all runs share, comes first.
    Raises `RungError` when that cannot be read, when a folder holds another run or when all
    fail, `KeyboardInterrupt` when one was stopped and saved.
    """
    with runs.lock_folder(next(iter(recipes)).parent, together=True):
        _make_runs(recipes, on_progress, report, now() if began is None else began)


def _make_runs(
    recipes: dict[Path, Recipe],
    on_progress: OnProgress,
    report: Callable[[list[Path]], None],
    began: float,
) -> None:
    _read_text(next(iter(recipes.values())), on_progress)
    _check_folders(recipes)
    failures: list[RungError] = []
    finished_before = _list_finished(recipes)
    shares = _Shares(
        [r.minutes or 0.0 for f, r in recipes.items() if f not in finished_before], began
    )
    for folder, recipe in recipes.items():
        if folder in finished_before:
            continue
        try:
            finished = _make(recipe, folder, on_progress, shares.begin(recipe))
        except RungError as error:
            on_progress(Progress(stage="failed", note=str(error), run=folder.name))
            failures.append(error)
            continue
        if not finished:
            raise KeyboardInterrupt
        on_progress(Progress(stage="done", run=folder.name))
        _report(recipes, report)
    if len(failures) == len(recipes):
        _remove_failed(recipes)
        raise failures[0]
    _check_one_text(recipes)
    _report(recipes, report)


@distributed.on_main
def _read_text(recipe: Recipe, on_progress: OnProgress) -> None:
    """Read the text and describe it: where that fails, no run need be begun.

    It is kept in the cache, where the runs find it.
    """
    on_progress(Progress(stage="reading", run=TEXT))
    corpus = read_corpus(asdict(recipe))
    on_progress(Progress(stage="read", note=corpus.describe(), run=TEXT))
    if warning := warn_of_copies(corpus, recipe.corpus):
        on_progress(Progress(stage="noted", note=warning, run=TEXT))
    on_progress(Progress(stage="done", run=TEXT))


class _Shares:
    """The minutes of several runs, shared among those still to come as each begins."""

    def __init__(self, minutes: list[float], began: float) -> None:
        self.ends = began + 60 * sum(minutes)
        self.waiting = sum(minutes)

    def begin(self, recipe: Recipe) -> float | None:
        """Return when the run's minutes must have begun to end with its share of what is left.

        The share is never less than the least part of the run's own minutes.
        """
        if recipe.minutes is None:
            return None
        share = max(
            MIN_TRAINING_SHARE * 60 * recipe.minutes,
            (self.ends - now()) * recipe.minutes / self.waiting,
        )
        self.waiting -= recipe.minutes
        return now() + share - 60 * recipe.minutes


@distributed.on_main
def _check_folders(recipes: dict[Path, Recipe]) -> None:
    """Make the folder of the runs; raise `RunError` where another run is there, or at work."""
    for folder, recipe in recipes.items():
        runs.make_folder(folder.parent)
        runs.check_unlocked(folder)
        _check_same(recipe, folder)
    before = _find_fingerprints(recipes)
    if not before:
        return
    now = read_corpus(asdict(next(iter(recipes.values()))))
    for folder, fingerprint in before.items():
        if fingerprint != now.fingerprint:
            raise RunError(
                f"{folder} was made of another text: {now.name} is not what it was then. Choose "
                f"another folder with "
                f"--out, as in {_suggest_out(folder)}, or delete {folder.parent} to climb again"
            )


def _find_fingerprints(recipes: Iterable[Path]) -> dict[Path, str]:
    """Return the fingerprint of the text of each run that read one."""
    begun = [folder for folder in recipes if (folder / runs.RECORD).exists()]
    records = {folder: runs.read_record_or_failure(folder) for folder in begun}
    return {
        folder: record["corpus"]["fingerprint"]
        for folder, record in records.items()
        if "fingerprint" in record.get("corpus", {})
    }


@distributed.on_main
def _check_one_text(recipes: Iterable[Path]) -> None:
    """Raise `RunError` where the text was changed during the climb: a table has one text."""
    if len(set(_find_fingerprints(recipes).values())) > 1:
        folder = next(iter(recipes)).parent
        raise RunError(f"the text has changed during the climb: delete {folder} and climb again")


@distributed.on_main
def _report(recipes: dict[Path, Recipe], report: Callable[[list[Path]], None]) -> None:
    report([folder for folder in recipes if (folder / runs.RECORD).exists()])


@distributed.on_main
def _list_finished(recipes: dict[Path, Recipe]) -> list[Path]:
    return [folder for folder in recipes if runs.is_finished(folder)]


@distributed.on_main
def _find_begun(recipe: Recipe, folder: Path) -> Recipe:
    return read_begun(folder) if find_checkpoints(folder) else recipe


def _make(recipe: Recipe, folder: Path, on_progress: OnProgress, began: float | None) -> bool:
    """Execute one recipe; what goes wrong is written into its record and raised as a `RungError`.

    One that was stopped goes on with what it had chosen: by the clock it might choose another size
    now.
    """
    try:
        begun = _find_begun(recipe, folder)
        return execute(begun, folder, for_run(folder.name, on_progress), began)
    except RungError as error:
        _record_failure(recipe, folder, str(error))
        raise
    except Exception as error:  # whatever it is, the rungs above it must still be climbed
        if distributed.world_size() > 1:  # but not by some of the processes without the others
            raise
        logger.exception("%s failed", folder.name)
        message = f"{type(error).__name__}: {first_line(error)}"
        _record_failure(recipe, folder, message)
        raise RunError(message) from error


def _suggest_out(folder: Path) -> str:
    """Suggest another folder beside that of the climb."""
    return f"--out {shlex.quote(f'{folder.parent}-2')}"


def _record_failure(recipe: Recipe, folder: Path, message: str) -> None:
    if not distributed.is_main():
        return
    try:
        record = runs.find_record(folder) or {"rung": recipe.rung}
        folder.mkdir(exist_ok=True)
        runs.write_record(folder, record | {"failed": message})
    except (OSError, RunError) as error:  # a record that is damaged says so itself
        logger.warning("the failure of %s could not be recorded: %s", folder.name, error)


@distributed.on_main
def _remove_failed(recipes: dict[Path, Recipe]) -> None:
    """Remove the folders of a climb that could not be begun."""
    for folder in recipes:
        if folder.is_dir() and runs.holds_only_failure(folder):
            shutil.rmtree(folder)
    with suppress(OSError):  # there is something else in it
        next(iter(recipes)).parent.rmdir()


def _check_same(recipe: Recipe, folder: Path) -> None:
    """Raise `RunError` when the folder holds a run made in another way."""
    if not (folder / runs.RECORD).exists():
        return
    before = runs.read_record_or_failure(folder).get("recipe")
    if before is None:
        return
    keys = ("documents", "column", "encoding", "minutes", "steps", "seed")
    asked: dict[str, Any] = {key: getattr(recipe, key) for key in keys}
    asked |= {f"model.{key}": value for key, value in recipe.model.items()}
    before |= {f"model.{key}": value for key, value in before.get("model", {}).items()}
    for key, value in asked.items():
        if before.get(key) != value:
            made = f"{key} {before.get(key)!r}"
            if key == "minutes" and before.get(key):  # the climb's were shared out
                made = f"{before[key]:g} minutes for this rung"
            raise RunError(
                f"{folder} was made with {made}, not {value!r}: choose another folder with "
                f"--out, as in {_suggest_out(folder)}, or delete {folder.parent} to climb again"
            )
    for key, value in recipe.tokenizer.items():
        if before.get("tokenizer", {}).get(key) != value:
            raise RunError(
                f"{folder} was made with another tokenizer: choose another folder with --out, "
                f"or delete {folder.parent} to climb again"
            )
