"""Score a run on minimal pairs: to show the accuracies, or to keep them in its record."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rung import runs
from rung.data.pairs import PairSet, read_pairs
from rung.device import choose_device
from rung.errors import RungError
from rung.evaluation.likelihood import needs_renormalization
from rung.evaluation.pairs import measure_accuracy, measure_groups, score_pairs
from rung.models import load
from rung.models.load_options import AS_STORED, LoadOptions
from rung.progress import OnProgress, Progress, ignore_progress


def evaluate_pairs(
    run: str,
    source: str,
    encoding: str | None = None,
    on_progress: OnProgress = ignore_progress,
    options: LoadOptions = AS_STORED,
) -> dict[str, Any]:
    """Score a run on the minimal pairs of a file or folder.

    Returns the accuracy in all, of each phenomenon and of each paradigm. Raises `CorpusError` where
    there are no pairs, `RunError` where there is no model.
    """
    pairs = open_pairs(source, encoding, on_progress)
    record = runs.find_training_record(Path(run))
    found, rung = _score(run, pairs, on_progress, options)
    return {"run": run, "rung": record.get("rung", rung), **found}


def open_pairs(source: str, encoding: str | None, on_progress: OnProgress) -> PairSet:
    """Read minimal pairs, and report what was read."""
    on_progress(Progress(stage="reading"))
    pairs = read_pairs(source, encoding)
    for note in (pairs.describe(), *pairs.notes):
        on_progress(Progress(stage="read", note=note))
    return pairs


def record_pairs(folders: Iterable[Path], pairs: PairSet, on_progress: OnProgress) -> None:
    """Score the finished runs on the pairs, and keep the accuracies in their records.

    A run whose record has those of the same pairs already is left as it is. One that cannot be
    scored is noted, and does not keep the others from being scored.
    """
    waiting = [
        folder
        for folder in filter(runs.is_finished, folders)
        if runs.read_record(folder).get("pairs", {}).get("fingerprint") != pairs.fingerprint
    ]
    for place, folder in enumerate(waiting):
        show = _count_over_runs(on_progress, place, [folder.name for folder in waiting])
        try:
            found, _ = _score(str(folder), pairs, show)
        except RungError as error:
            note = f"{folder.name} is not scored on the minimal pairs: {error}"
            on_progress(Progress(stage="noted", note=note))
        else:
            runs.write_record(folder, runs.read_record(folder) | {"pairs": found})


def _count_over_runs(on_progress: OnProgress, place: int, names: Sequence[str]) -> OnProgress:
    """Report the progress of the run at `place` as a part of the work on all of them."""

    def show(progress: Progress) -> None:
        each = progress.total or 0
        done, total = place * each + progress.done, len(names) * each
        on_progress(replace(progress, done=done, total=total, note=names[place]))

    return show


def _score(
    run: str, pairs: PairSet, on_progress: OnProgress, options: LoadOptions = AS_STORED
) -> tuple[dict[str, Any], str]:
    """Return the accuracies on the pairs as a record keeps them, and the type of the model."""
    model, tokenizer = load(run, options)
    scores = score_pairs(model.to(choose_device()), tokenizer, pairs.pairs, on_progress)
    phenomena = measure_groups(scores, lambda pair: pair.phenomenon)
    paradigms = measure_groups(scores, lambda pair: (pair.phenomenon, pair.paradigm))
    facts = {
        "name": pairs.name,
        "fingerprint": pairs.fingerprint,
        **asdict(measure_accuracy(scores)),
        "spelled": sum(score.spelled > 0 for score in scores),
        "renormalized": needs_renormalization(model),
        "phenomena": [
            {"phenomenon": name, **asdict(found)} for name, found in phenomena.items() if name
        ],
        "paradigms": [
            {"phenomenon": phenomenon, "paradigm": name, **asdict(found)}
            for (phenomenon, name), found in paradigms.items()
        ],
    }
    return facts, model.config.model_type
