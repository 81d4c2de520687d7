"""Report on runs, and on other models beside them: these are scored on the runs' own test text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rung import hub, model_files, runs
from rung.errors import RunError
from rung.files import check_writable_file
from rung.progress import OnProgress, Progress, for_run, ignore_progress
from rung.report.page import write_report
from rung.report.summaries import ReportedRun, report_record

NO_OPTIONS: Mapping[str, Any] = {}


def report_runs(
    names: Sequence[str],
    out: Path,
    options: Mapping[str, Any] = NO_OPTIONS,
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Write a page that compares runs, and other models beside them, to `out`.

    `names` are run folders and folders that hold runs; model folders that are no runs, and Hub ids,
    are loaded with these `LoadOptions` and scored on the test text of the first run. Raises
    `RunError` where there is nothing to report on, or no such run for a model to stand beside.
    """
    if out.exists():
        check_writable_file(out)
    models = [name for name in names if _is_model(name)]
    roots = [Path(name) for name in names if name not in models]
    folders = [folder for root in roots for folder in runs.find_runs(root)]
    for root in roots:
        if root in folders or not any(folder.is_relative_to(root) for folder in folders):
            runs.read_record(root)  # raises the error that says why there is no run
    others = []
    if models:
        beside = _find_text(folders, models[0])
        others = [_score(name, options, beside, on_progress) for name in models]
    write_report(folders, out, others)


def _is_model(name: str) -> bool:
    """Return whether a name is that of a model folder without a record, or of the Hub."""
    folder = Path(name)
    if not folder.is_dir():
        return hub.is_hub_id(name)
    return (folder / model_files.CONFIG).exists() and not (folder / runs.RECORD).exists()


def _find_text(folders: Sequence[Path], model: str) -> Path:
    """Return the first run whose test text is known."""
    for folder in folders:
        record = runs.read_record_or_failure(folder)
        if "recipe" in record and "corpus" in record and record.get("scores"):
            return folder
    raise RunError(
        f"{model} is no run and has no text of its own: name a run that was scored beside it, and "
        "it is scored on the same test text"
    )


def _score(
    name: str, options: Mapping[str, Any], beside: Path, on_progress: OnProgress
) -> ReportedRun:
    """Score a model on the test text of the run in `beside`, and record it as a run's."""
    # These import torch, which takes seconds that a report of runs alone does not need.
    from rung.device import choose_device
    from rung.evaluation.score import score_documents
    from rung.models import count_parameters, load
    from rung.models.load_options import LoadOptions
    from rung.workflows.evaluate import read_current_text
    from rung.workflows.record import describe_tokenizer

    theirs = runs.read_record(beside)
    text = read_current_text(str(beside), theirs)
    on_progress(Progress(stage="read", note=f"{name} is scored on the test text of {beside}"))
    model, tokenizer = load(name, LoadOptions(**options))
    texts = text.split("test")["text"]
    score = score_documents(model.to(choose_device()), tokenizer, texts, for_run(name, on_progress))
    record: dict[str, Any] = {
        "rung": model.config.model_type,
        "parameters": count_parameters(model),
        "corpus": theirs["corpus"] | {"fingerprint": text.fingerprint},
        "tokenizer": describe_tokenizer(tokenizer, "its own"),
        "scores": {"test": score.as_dict()},
    }
    return report_record(Path(name).name, record)
