"""A run is a folder: a Hugging Face model plus what rung knows about how it was made.

config.json, model.safetensors, generation_config.json, tokenizer files   the model
rung.json       recipe, corpus, tokenizer, versions, seed, hardware, scores
metrics.jsonl   one line per logged step
samples.md      what the model wrote as it learned
checkpoints/    what training, or a long count, resumes from
"""

import errno
import json
import logging
import math
import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from rung import distributed, model_files
from rung.errors import RunError
from rung.files import choose_beside, settle_folder, sync, write_atomically
from rung.ladder import is_counting
from rung.model_files import CHECKPOINTS, METRICS, RECORD
from rung.runs.schema import find_misfit

logger = logging.getLogger(__name__)

SAMPLES = "samples.md"
RESUMED = ("checkpoint-*", "order-*")  # there: what training goes on from, and what counting does
LOCK, HOLDER = (
    ".lock",
    ".holder",
)  # there while a command writes into the folder; the second says which
LONGEST_PROMPT = 60  # characters
# Steps of training from scratch, for its scores to say anything: of fewer, the warm-up, a
# twentieth, is no whole one.
LEAST_STEPS = 20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How torch.save, numpy's tofile, and tokenizers, in Rust, say that a disk is full.
CANNOT_WRITE = (
    *("PytorchStreamWriter", "inline_container", "requested and"),
    *(f"(os error {number})" for number in NO_ROOM),
)


def to_json(facts: Any, indent: int | None = None) -> str:
    """The facts as JSON, which knows no infinity: what is no finite number becomes null.

    A file's name that is not UTF-8 has lone surrogates, which are escaped: read again it is the
    same name.
    """

    def mend(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: mend(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [mend(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json.dumps(mend(facts), indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


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
    model_files.check_folder(folder)
    if not path.exists():
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
    if misfit := find_misfit(record):
        raise RunError(f"{path} is damaged ({misfit}): train the run again")
    return record


def read_any_record(folder: Path) -> dict[str, Any]:
    """The folder's `rung.json`; where it is damaged, one that says so: among others it is named,
    and they go on.
    """
    try:
        return read_record(folder)
    except RunError as error:
        if not (folder / RECORD).exists():
            raise
        return {"rung": folder.resolve().name, "failed": str(error)}


def find_record(folder: Path) -> dict[str, Any]:
    """The folder's `rung.json`; empty where it is no run's, as of a plain model folder or a Hub
    id.
    """
    return read_record(folder) if (folder / RECORD).exists() else {}


def find_doubt(record: dict[str, Any]) -> str | None:
    """Why the scores of a run say nothing of its rung, which was trained for too few steps; None
    where they do.
    """
    steps = (record.get("training") or {}).get("steps") or 0
    if (
        record.get("base") or not 0 < steps < LEAST_STEPS
    ):  # what goes on from a base had learned before
        return None
    return f"{steps} training step{'s' if steps > 1 else ''} only: too few to have learned anything"


def find_doubts(records: Sequence[dict[str, Any]]) -> list[str | None]:
    """Of each of these runs `find_doubt`'s reason, or that counting pairs needs fewer bits for the
    same text.
    """
    pairs = [_measure(record) for record in records if record.get("rung") == "bigram"]

    def compare(record: dict[str, Any]) -> str | None:
        text, bits = _measure(record)
        is_worse = not is_counting(record.get("rung", "")) and any(
            text == other and bits > few for other, few in pairs
        )
        return "worse than counting pairs: trained for too short a time" if is_worse else None

    return [find_doubt(record) or compare(record) for record in records]


def _measure(record: dict[str, Any]) -> tuple[Any, float]:
    """What tells the text of a run's score from others, and its bits per byte; without a score they
    are no number.
    """
    score = (record.get("scores") or {}).get("test") or {"bits_per_byte": math.nan}
    text, bits = (
        ((record.get("corpus") or {}).get("fingerprint"), score.get("bytes")),
        score.get("bits_per_byte"),
    )
    return text, math.inf if bits is None else bits


def find_busyness(record: dict[str, Any]) -> str | None:
    """The share of the cores that a run got on a machine that was busy with other things; None
    where it was not.
    """
    training = record.get("training") or {}
    if not training.get("was_busy"):
        return None
    cores = training.get("cores", 1)
    share = training.get("cpu_share", 0)
    return (
        f"the machine was busy: this run got {share:.0%} of {cores} core{'s' if cores > 1 else ''}"
    )


def read_passage(record: dict[str, Any]) -> str:
    """The passage that a run was shown on; empty where there is none."""
    return "".join(text for text, _ in record.get("passage") or [])


def read_prompt(record: dict[str, Any]) -> str:
    """The beginning of the words that a run was shown going on from, in one line; empty where there
    are none.
    """
    words = " ".join(str(record.get("prompt") or "").split())
    return words if len(words) <= LONGEST_PROMPT else words[:LONGEST_PROMPT].rsplit(" ", 1)[0]


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a run that was trained and scored to its end."""
    return (folder / RECORD).exists() and "scores" in read_any_record(folder)


def say_why_no_model(folder: Path) -> str:
    """What a folder without a `config.json` is: Meta's, a run that was stopped before it had a
    model, or no run.
    """
    if (folder / "params.json").exists():
        return (
            f"is in Meta's own format: write it in ours with `rung export "
            f"{shlex.quote(str(folder))} OUT --to hf`"
        )
    return (
        say_how_to_go_on(folder)
        if (folder / CHECKPOINTS).is_dir()
        else "is not a run: it has no config.json"
    )


def say_why_no_weights(folder: Path) -> str:
    """What a folder with a `config.json` and no weights is: a run that was stopped as it saved, or
    a part of one.
    """
    if (folder / CHECKPOINTS).is_dir():
        return say_how_to_go_on(folder)
    return f"has no {model_files.WEIGHTS}: copy its weights there, or train it again"


def say_how_to_go_on(folder: Path) -> str:
    """Of a run that is not finished, the command."""
    return f"is not finished: go on with `{_resuming(folder)}` first"


def _resuming(folder: Path) -> str:
    verb = "tune" if "tune" in find_record(folder) else "train"
    return f"rung {verb} --out {shlex.quote(str(folder))} --resume"


def holds_failure_only(folder: Path) -> bool:
    """Whether a run failed there before there was anything to keep: all that is left is its record,
    which says so.
    """
    if list_names(folder) != [RECORD]:
        return False
    record = read_any_record(folder)
    return "failed" in record and "recipe" not in record


def list_names(folder: Path) -> list[str]:
    """The names of what is in the folder, but for the lock that a kill leaves there."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, HOLDER))


@contextmanager
def hold(folder: Path, *, together: bool = False) -> Iterator[None]:
    """Be the only command that writes into `folder`, which is made; a kill lets go of it.

    With `together` all processes call it: the main one holds it for them. Raises `RunError` where
    another command holds it, and says which.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    held: list[FileLock] = []

    def take() -> None:
        held.extend(_take(folder))

    (distributed.on_main(take) if together else take)()
    try:
        yield
    finally:
        for lock in held:
            for name in (HOLDER, LOCK):
                with suppress(OSError):
                    (folder / name).unlink()
            lock.release()
            with suppress(OSError):  # there is something in it
                for path in missing:
                    path.rmdir()


def check_free(folder: Path) -> None:
    """Raise `RunError` where another process holds the folder."""
    if (folder / LOCK).exists():
        for lock in _lock(folder):
            lock.release()


def _take(folder: Path) -> list[FileLock]:
    held = _lock(make_folder(folder))
    (folder / HOLDER).write_text(
        json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8"
    )
    return held


def _lock(folder: Path) -> list[FileLock]:
    """The lock of the folder, taken; none where its file system has none."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
            who = f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
            who = "another process"
        raise RunError(
            f"{folder} is being written by {who}: wait until that has ended, or choose another "
            f"folder with --out"
        ) from None
    except (OSError, NotImplementedError) as error:
        logger.debug("%s cannot be locked: %s", folder, error)
        return []
    return [lock]


@contextmanager
def undo_failed_start(folder: Path) -> Iterator[None]:
    """A failure within leaves `folder` as it was; where there is work to go on from, the error says
    how instead.
    """
    if not distributed.is_main():
        yield
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    before = set(folder.iterdir()) if folder.is_dir() else set()
    try:
        yield
    except BaseException as error:
        if _holds_work(folder):
            error.add_note(
                f"what was made so far is kept: go on with `{_resuming(folder)}`, or delete "
                f"{folder} to begin again"
            )
        else:
            _remove_new(folder, before)
            with suppress(OSError):  # something else was put there
                for path in missing:
                    path.rmdir()
        raise


def _holds_work(folder: Path) -> bool:
    found = [path for name in RESUMED for path in (folder / CHECKPOINTS).glob(name)]
    return ((folder / "config.json").exists() or bool(found)) and (folder / RECORD).exists()


def _remove_new(folder: Path, before: set[Path]) -> None:
    for path in set(folder.iterdir()) - before if folder.is_dir() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Add one line to `metrics.jsonl`."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(to_json(line) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line cut short by a crash is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    model_files.check_inside(folder, path)
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def rewind(folder: Path, step: int, *, evaluate: bool) -> None:
    """Drop the metrics and samples after `step`, and with `evaluate` those of its evaluation: they
    are made again.
    """
    kept = [
        line
        for line in read_metrics(folder)
        if line["step"] < step + (not evaluate or "bits_per_byte" not in line)
    ]
    write_atomically(folder / METRICS, "".join(to_json(line) + "\n" for line in kept))
    if (folder / SAMPLES).exists():
        text = (folder / SAMPLES).read_text(encoding="utf-8", errors="ignore")
        parts = re.split(r"^(?=## Step \d)", text, flags=re.MULTILINE)
        kept_parts = [part for part in parts if _step_of_sample(part) < step + (not evaluate)]
        write_atomically(folder / SAMPLES, "".join(kept_parts))


def _step_of_sample(part: str) -> int:
    found = re.match(r"## Step (\d+)", part)
    return int(found[1]) if found else 0


def find_runs(root: Path) -> Iterator[Path]:
    """Every run below `root`, in the order of their names; what lies in a run's own checkpoints is
    none.
    """
    found = sorted(path.parent for path in root.rglob(RECORD))
    inside = {folder / CHECKPOINTS for folder in found}
    yield from (folder for folder in found if inside.isdisjoint(folder.parents))


@contextmanager
def explain_failed_writes(folder: Path) -> Iterator[None]:
    """Raise `RunError` where there is no room to write: what writes weights and tokenizers says so
    in many ways.
    """
    try:
        yield
    except Exception as error:
        if not _is_failed_write(error):
            raise
        message = str(error).strip() or type(error).__name__
        raise RunError(
            f"{folder} could not be written to ({message.splitlines()[0]}): make room there; what "
            f"was saved is kept"
        ) from error


def _is_failed_write(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in NO_ROOM
    return isinstance(error, SafetensorError) or any(sign in str(error) for sign in CANNOT_WRITE)


def save_model(folder: Path, *parts: Any) -> None:
    """Save what has `save_pretrained` (a model, a tokenizer), each file written beside, synced and
    renamed.

    What `gpt2`, `llama3` and the tokenizers write opens in transformers 4, too.
    """
    with choose_beside(folder / "model") as beside:
        with explain_failed_writes(folder):
            for part in parts:
                part.save_pretrained(beside)
            model_files.spell_for_transformers_4(beside)
            settle_folder(beside)
        for file in sorted(beside.iterdir()):
            file.replace(folder / file.name)
        sync(folder)


def make_folder(folder: Path) -> Path:
    """The folder, made where it is missing.

    Raises `RunError` when it cannot be made or written to.
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
