"""Write, read and check the record of a run, `rung.json`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rung import model_files
from rung.errors import RunError
from rung.files import to_json, write_atomically
from rung.model_files import CHECKPOINTS, RECORD
from rung.runs.schema import find_schema_error

MAX_PROMPT_CHARACTERS = 60


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Replace the folder's `rung.json`."""
    write_atomically(folder / RECORD, to_json(record, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Read the folder's `rung.json`.

    Raises `RunError` where the folder does not exist, is not a run, or has a damaged record.
    """
    path = folder / RECORD
    if not folder.is_dir():
        raise RunError(f"no run at {folder}: `rung runs` lists what there is")
    model_files.check_folder(folder)
    if not path.exists():
        model_files.check_no_adapter(folder)
        raise RunError(f"{folder} is not a run: it has no {RECORD}")
    model_files.check_inside(folder, path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}): train the run again") from error
    if not isinstance(record, dict) or "rung" not in record:
        raise RunError(f"{path} is not a run's record: it has no key 'rung'")
    if wrong := find_schema_error(record):
        raise RunError(f"{path} is damaged ({wrong}): train the run again")
    return record


def read_record_or_failure(folder: Path) -> dict[str, Any]:
    """Read the folder's `rung.json`; return the record of a failed run where it is damaged.

    A list of runs can thus name a damaged run and show the others. Raises `RunError` where there is
    no record.
    """
    try:
        return read_record(folder)
    except RunError as error:
        if not (folder / RECORD).exists():
            raise
        return {"rung": folder.resolve().name, "failed": str(error)}


def find_record(folder: Path) -> dict[str, Any]:
    """Read the folder's `rung.json`; return an empty record for a plain model folder or a Hub id.

    Raises `RunError` where the record is damaged.
    """
    return read_record(folder) if (folder / RECORD).exists() else {}


def find_training_record(folder: Path) -> dict[str, Any]:
    """Read the record of the run that trained the folder's weights: of a checkpoint, its run's.

    Empty and errors as of `find_record`.
    """
    return find_record(find_run_folder(folder))


def find_run_folder(folder: Path) -> Path:
    """Return the folder of the run that a checkpoint is of; any other folder as it is."""
    place = folder.absolute()
    is_checkpoint = place.parent.name == CHECKPOINTS and not (place / RECORD).exists()
    return place.parents[1] if is_checkpoint else folder


def is_finished(folder: Path) -> bool:
    """Return whether the folder holds a run that was trained and scored to its end."""
    return (folder / RECORD).exists() and "scores" in read_record_or_failure(folder)


def find_runs(root: Path) -> Iterator[Path]:
    """Yield every run below `root`, sorted by path, except those in a run's own checkpoints."""
    found = sorted(path.parent for path in root.rglob(RECORD))
    inside = {folder / CHECKPOINTS for folder in found}
    yield from (folder for folder in found if inside.isdisjoint(folder.parents))


def read_passage(record: dict[str, Any]) -> str:
    """Join the texts of the passage that was scored token by token; return "" if there is none."""
    return "".join(text for text, _ in record.get("passage") or [])


def read_prompt(record: dict[str, Any]) -> str:
    """Return the prompt of the run's sample as one line, cut at a word; "" where there is none."""
    words = " ".join(str(record.get("prompt") or "").split())
    if len(words) <= MAX_PROMPT_CHARACTERS:
        return words
    return words[:MAX_PROMPT_CHARACTERS].rsplit(" ", 1)[0]
