"""Files that are whole or not there: written beside, synced, renamed; and folders of a cache that
know their damage.

What is kept in a cache is a folder with a manifest of its files, their sizes and digests. It is
made once, by one process while others wait, is checked whenever it is opened, and is made again
where it is damaged.
"""

import errno
import functools
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rung.errors import RunError, first_line

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VALUE = "value.json"
HASHED_BYTES = (
    1 << 24
)  # of a larger file of a cache the size must do: reading all of it takes seconds
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How torch.save, numpy's tofile, and tokenizers, in Rust, say that a disk is full.
DISK_FULL_SIGNS = (
    *("PytorchStreamWriter", "inline_container", "requested and"),
    *(f"(os error {number})" for number in DISK_FULL),
)
SOON = 1.0  # seconds after which it is said that another process is waited for
CLOCKS_DIFFER = 2.0  # seconds, between when a process began and when it wrote a file
BESIDE = re.compile(
    r"\.(\d+)-([0-9a-f]{6})-[0-9a-f]{8}\.(.+)", re.DOTALL
)  # process, machine, chance, name


def to_json(facts: Any, indent: int | None = None) -> str:
    """Write facts as JSON, with null for NaN and infinity, which JSON does not have.

    The lone surrogates of a file name that is not UTF-8 are escaped: read again it is the same.
    """

    def mend(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: mend(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [mend(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json.dumps(mend(facts), indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


@contextmanager
def explain_failed_writes(folder: Path) -> Iterator[None]:
    """Raise `RunError` where the block fails because there is no room in `folder`."""
    try:
        yield
    except Exception as error:
        if not _is_failed_write(error):
            raise
        raise RunError(
            f"{folder} could not be written to ({first_line(error)}): make room there; what "
            f"was saved is kept"
        ) from error


def _is_failed_write(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in DISK_FULL
    from safetensors import SafetensorError  # seldom needed

    return isinstance(error, SafetensorError) or any(s in str(error) for s in DISK_FULL_SIGNS)


@contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """A name to write a file or a folder under, which then takes the place of `path`.

    A reader sees the old one or the new one, never half. After a failure nothing is left; what a
    kill leaves is removed when `path` is written the next time.
    """
    with choose_beside(path) as beside:
        yield beside
        put_in_place(beside, path)


@contextmanager
def choose_beside(path: Path) -> Iterator[Path]:
    """A name beside `path` that no other process or thread has; what is written under it is removed
    in the end.
    """
    remove_leftovers(path.parent, path.name)
    beside = _name_beside(path)
    try:
        yield beside
    finally:
        _remove(beside)


def put_in_place(beside: Path, path: Path) -> None:
    """Have what was written `beside` on the disk, and then under the name of `path`."""
    settle_folder(beside) if beside.is_dir() else sync(beside)
    if path.is_dir() and not path.is_symlink():
        with choose_beside(path) as old:
            path.replace(old)
            beside.replace(path)
    else:
        beside.replace(path)
    sync(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Write beside `path`, sync, and rename: a reader sees the old file or the new one, never
    half.
    """
    with write_beside(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def remove_leftovers(folder: Path, name: str = "", *, alone: bool = False) -> None:
    """Remove what processes that were killed had written beside `name`, or beside anything in the
    folder.

    Those of another machine may still run, unless this one is `alone` there.
    """
    try:
        entries = list(os.scandir(folder))
    except PermissionError:  # it may be written to, and not listed
        return
    for entry in entries:
        found = BESIDE.fullmatch(entry.name)
        if (
            found
            and name in ("", found[3])
            and (alone or _is_abandoned(entry, int(found[1]), found[2]))
        ):
            _remove(Path(entry.path))


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before anything else is done."""
    if path.is_dir() and os.name == "nt":
        return  # there a folder cannot be opened
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle_folder(folder: Path) -> None:
    """Have a folder that was just made, with all in it, on the disk and as readable as the folder
    itself is.

    The umask decided on the folder; safetensors and tempfile write with mode 0600 whatever it is.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in sorted(folder.rglob("*")):
        path.chmod(mode if path.is_dir() else mode & 0o666)
        sync(path)
    sync(folder)


def seal(folder: Path, hashed_bytes: float = HASHED_BYTES) -> None:
    """Write the manifest of a folder: the size of every file, and the digest of those of at most so
    many bytes.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {
        path.relative_to(folder).as_posix(): (size, _digest(path) if size <= hashed_bytes else None)
        for path in found
        for size in (path.stat().st_size,)
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def find_damage(folder: Path, *needed: str) -> str | None:
    """What is wrong with the files of a sealed folder; None where all, and those `needed`, are as
    they were written.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, (size, digest) in manifest.items():
            file = folder / name
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size:,} bytes and had {size:,}"
            if digest is not None and _digest(file) != digest:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or MANIFEST).name}: {error.strerror}"
    except (ValueError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    missing = [name for name in needed if name not in manifest]
    return f"{MANIFEST} names no {missing[0]}" if missing else None


def keep(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder of a cache with what `make` writes into the folder that it is given; made where it
    is not whole.
    """
    if find_damage(folder) is None:
        return folder
    with locked(folder):
        damage = find_damage(folder)
        if damage is None:  # another process has made it meanwhile
            return folder
        if folder.exists():
            logger.info("%s is damaged (%s) and is made again", folder, damage)
        with write_beside(folder) as beside:
            beside.mkdir()
            try:
                make(beside)
                seal(beside)
            except OSError as error:
                error.filename = error.filename or str(
                    folder
                )  # libraries do not say where a disk was full
                raise
    return folder


def remember(folder: Path, find: Callable[[], Any]) -> Any:
    """What `find` gave the first time, as JSON knows it, kept in a folder of a cache."""
    keep(folder, lambda beside: (beside / VALUE).write_text(json.dumps(find()), encoding="utf-8"))
    return json.loads((folder / VALUE).read_text(encoding="utf-8"))


def recall(folder: Path) -> Any:
    """What is remembered in a folder of a cache; None where nothing is."""
    return (
        None
        if find_damage(folder, VALUE)
        else json.loads((folder / VALUE).read_text(encoding="utf-8"))
    )


def revise(folder: Path, value: Any) -> None:
    """Remember another value in a folder of a cache."""
    with locked(folder), write_beside(folder) as beside:
        beside.mkdir()
        (beside / VALUE).write_text(json.dumps(value), encoding="utf-8")
        seal(beside)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only thread of all processes that makes `path`; whoever comes second waits, and says
    so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))  # a kill lets go of it
    try:
        lock.acquire(timeout=SOON)
    except Timeout:
        logger.info("another process makes %s: waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _name_beside(path: Path) -> Path:
    return path.with_name(f".{os.getpid()}-{_machine()}-{secrets.token_hex(4)}.{path.name}")


@functools.cache
def _machine() -> str:
    """What tells this machine from others that share the folder: their processes have the same
    numbers.
    """
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _is_abandoned(entry: "os.DirEntry[str]", process: int, machine: str) -> bool:
    """Whether it was written by a process of this machine that is no more."""
    if machine != _machine():
        return False
    import psutil  # a fiftieth of a second, and seldom needed

    try:
        writer = psutil.Process(process)
        is_another = (
            writer.create_time() > entry.stat(follow_symlinks=False).st_mtime + CLOCKS_DIFFER
        )
        return is_another or writer.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError, OverflowError):
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
