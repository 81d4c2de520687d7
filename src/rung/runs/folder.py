"""Make the folder of a run, save a model in it, and explain what an unfinished folder lacks.

config.json, model.safetensors, generation_config.json, tokenizer files   the model
rung.json       recipe, corpus, tokenizer, versions, seed, hardware, scores
metrics.jsonl   one line per logged step
samples.md      texts that the model wrote during training
checkpoints/    states from which training or a long count resumes
"""

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rung import distributed, model_files
from rung.errors import RunError
from rung.files import move_files_into_place, temporary_path
from rung.full_disk import explain_failed_writes
from rung.model_files import CHECKPOINTS, RECORD
from rung.runs.record import find_record, read_record_or_failure

# Training resumes from checkpoints of the first pattern, and counting from those of the second.
RESUME_PATTERNS = ("checkpoint-*", "order-*")
# These files exist while a command writes into the folder; the second names its process.
LOCK, HOLDER = ".lock", ".holder"


def make_folder(folder: Path) -> Path:
    """Make the folder where it is missing, and return it.

    Raises `RunError` where the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be made: {error.strerror}; choose another place with --out"
        ) from error
    if not os.access(folder, os.W_OK):
        raise RunError(f"{folder} cannot be written to; choose another place with --out")
    return folder


def save_model(folder: Path, *parts: Any) -> None:
    """Save models and tokenizers by their `save_pretrained`; each file is written atomically.

    transformers 4 also opens what `gpt2`, `llama3` and the tokenizers write.
    """
    with temporary_path(folder / "model") as temporary, explain_failed_writes(folder):
        for part in parts:
            part.save_pretrained(temporary)
        model_files.spell_for_transformers_4(temporary)
        move_files_into_place(temporary, folder)


def list_contents(folder: Path) -> list[str]:
    """List the names in the folder, without the lock that a killed command leaves there."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, HOLDER))


def holds_only_failure(folder: Path) -> bool:
    """Return whether the folder holds only the record of a run that failed at its start."""
    if list_contents(folder) != [RECORD]:
        return False
    record = read_record_or_failure(folder)
    return "failed" in record and "recipe" not in record


def explain_missing_model(folder: Path) -> str:
    """Say what a folder without `config.json` is and what to do, as the end of a sentence."""
    if (folder / "params.json").exists():
        return (
            f"is in Meta's own format: write it in ours with `rung export "
            f"{shlex.quote(str(folder))} OUT --to hf`"
        )
    return (
        explain_unfinished(folder)
        if (folder / CHECKPOINTS).is_dir()
        else "is not a run: it has no config.json"
    )


def explain_missing_weights(folder: Path) -> str:
    """Say what a folder without weights is and what to do, as the end of a sentence."""
    if (folder / CHECKPOINTS).is_dir():
        return explain_unfinished(folder)
    return f"has no {model_files.WEIGHTS}: copy its weights there, or train it again"


def explain_unfinished(folder: Path) -> str:
    """Say that a run is not finished, and how to resume it, as the end of a sentence."""
    return f"is not finished: go on with `{_resume_command(folder)}` first"


def _resume_command(folder: Path) -> str:
    verb = "tune" if "tune" in find_record(folder) else "train"
    return f"rung {verb} --out {shlex.quote(str(folder))} --resume"


@contextmanager
def remove_failed_start(folder: Path) -> Iterator[None]:
    """Restore `folder` as it was if the block fails, unless there is work to resume from.

    If there is such work, the error gets a note that says how to resume.
    """
    if not distributed.is_main():
        yield
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    before = set(folder.iterdir()) if folder.is_dir() else set()
    try:
        yield
    except BaseException as error:
        if _can_resume(folder):
            error.add_note(
                f"what was made so far is kept: go on with `{_resume_command(folder)}`, or delete "
                f"{folder} to begin again"
            )
        else:
            _remove_new(folder, before)
            # A folder that something else was put into stays.
            with suppress(OSError):
                for path in missing:
                    path.rmdir()
        raise


def _can_resume(folder: Path) -> bool:
    found = [path for name in RESUME_PATTERNS for path in (folder / CHECKPOINTS).glob(name)]
    return ((folder / "config.json").exists() or bool(found)) and (folder / RECORD).exists()


def _remove_new(folder: Path, before: set[Path]) -> None:
    for path in set(folder.iterdir()) - before if folder.is_dir() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
