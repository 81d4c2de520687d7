"""A run is a folder: a Hugging Face model plus what rung knows about how it was made.

config.json, model.safetensors, generation_config.json, tokenizer files   the model
rung.json       recipe, corpus, tokenizer, versions, seed, hardware, scores
metrics.jsonl   one line per logged step
samples.md      what the model wrote as it learned
checkpoints/    what training resumes from
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rung.errors import RunError

RECORD = "rung.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.md"
CHECKPOINTS = "checkpoints"
TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "inline_container")  # how torch.save says that a disk is full


def write_atomically(path: Path, text: str) -> None:
    """Write beside `path`, sync, and rename: a reader sees the old file or the new one, never half."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def to_json(facts: Any, indent: int | None = None) -> str:
    """The facts as JSON, which knows no infinity: what is no finite number becomes null."""

    def mend(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: mend(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [mend(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(mend(facts), indent=indent, ensure_ascii=False)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Replace the folder's `rung.json`."""
    write_atomically(folder / RECORD, to_json(record, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """The folder's `rung.json`.

    Raises `RunError` when the folder does not exist, is no run, or its record is damaged.
    """
    path = folder / RECORD
    if not folder.is_dir():
        raise RunError(f"no run at {folder}: `rung runs` lists what there is")
    if not path.exists():
        raise RunError(f"{folder} is not a run: it has no {RECORD}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({error}): train the run again") from error
    if not isinstance(record, dict) or "rung" not in record:
        raise RunError(f"{path} is not a run's record: it has no key 'rung'")
    return record


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a run that was trained and scored to its end."""
    return (folder / RECORD).exists() and "scores" in read_record(folder)


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Add one line to `metrics.jsonl`."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(to_json(line) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line cut short by a crash is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def keep_metrics_before(folder: Path, step: int) -> None:
    """Drop the lines after `step`: a resumed run writes them again."""
    kept = [line for line in read_metrics(folder) if line["step"] <= step]
    write_atomically(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def find_runs(root: Path) -> Iterator[Path]:
    """Every run below `root`, in the order of their names."""
    for record in sorted(root.rglob(RECORD)):
        if CHECKPOINTS not in record.parts:
            yield record.parent


@contextmanager
def explain_failed_writes(folder: Path) -> Iterator[None]:
    """Raise `RunError` where safetensors or torch cannot write; their errors are no `OSError` as a full disk's is."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        message = str(error).strip() or type(error).__name__
        if isinstance(error, RuntimeError) and not any(sign in message for sign in TORCH_CANNOT_WRITE):
            raise
        raise RunError(
            f"{folder} could not be written to ({message.splitlines()[0]}): make room there; what was saved is kept"
        ) from error


def save_model(folder: Path, *parts: Any) -> None:
    """Save what has `save_pretrained` (a model, a tokenizer), each file written beside and renamed."""
    beside = folder / f".saving.{os.getpid()}"
    try:
        with explain_failed_writes(folder):
            for part in parts:
                part.save_pretrained(beside)
        for file in sorted(beside.iterdir()):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def make_folder(folder: Path) -> Path:
    """The folder, made where it is missing.

    Raises `RunError` when it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error.strerror}; choose another place with --out") from error
    if not os.access(folder, os.W_OK):
        raise RunError(f"{folder} cannot be written to; choose another place with --out")
    return folder
