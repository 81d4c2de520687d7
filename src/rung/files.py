"""Files that are whole or not there: atomic writing, JSON, a full disk, and folders of a cache.

An entry of the cache is a folder with a manifest: the sizes and digests of its files. One process
makes it while others wait; each opening checks it, and makes it again where it is damaged.
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
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from rung.errors import RunError, first_line

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VALUE = "value.json"
# A larger file of the cache is checked by its size alone: reading all of it takes seconds.
HASHED_BYTES = 1 << 24
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How torch.save, numpy's tofile, and tokenizers, in Rust, say that a disk is full.
DISK_FULL_SIGNS = (
    *("PytorchStreamWriter", "inline_container", "requested and"),
    *(f"(os error {number})" for number in DISK_FULL),
)
# After so many seconds the log says that another process is waited for.
QUIET_WAIT_SECONDS = 1.0
# The system's clock and a file system's may differ by so many seconds.
CLOCK_DIFFERENCE_SECONDS = 2.0
# Of a temporary path: the number of the process, the machine, a random part, the final name.
TEMPORARY_NAME = re.compile(r"\.(\d+)-([0-9a-f]{6})-[0-9a-f]{8}\.(.+)", re.DOTALL)


def cache_folder() -> Path:
    """Return the folder of the cache: `$RUNG_CACHE`, or `rung` in the user's cache folder.

    For a user without a home it is in the folder for temporary files. Raises `RunError` where
    another user owns that one.
    """
    if folder := os.environ.get("RUNG_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or (
        "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    )
    try:
        return Path(base).expanduser() / "rung"
    except RuntimeError:  # the user has no home folder
        place = Path(tempfile.gettempdir()) / f"rung-{os.getuid()}"
        if place.exists() and place.stat().st_uid != os.getuid():
            raise RunError(
                f"there is no home folder for a cache, and {place} is another user's: name one in "
                f"RUNG_CACHE"
            ) from None
        return place


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


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, and never a part."""
    with atomic_replace(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Give a temporary path for a file or a folder, which replaces `path` at the end.

    A reader sees the old one or the new one, and never a part. After an error nothing is left; what
    a kill leaves is removed when `path` is written the next time.
    """
    with temporary_path(path) as temporary:
        yield temporary
        move_into_place(temporary, path)


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Give a path beside `path` that no other process or thread has, and remove it at the end."""
    remove_leftovers(path.parent, path.name)
    name = f".{os.getpid()}-{_hash_machine()}-{secrets.token_hex(4)}.{path.name}"
    temporary = path.with_name(name)
    try:
        yield temporary
    finally:
        _remove(temporary)


def move_into_place(temporary: Path, path: Path) -> None:
    """Sync a file or a folder that was written under a temporary path, and rename it to `path`."""
    sync_tree(temporary) if temporary.is_dir() else sync(temporary)
    if path.is_dir() and not path.is_symlink():
        with temporary_path(path) as old:
            path.replace(old)
            temporary.replace(path)
    else:
        temporary.replace(path)
    sync(path.parent)


def move_files_into_place(temporary: Path, folder: Path) -> None:
    """Sync a temporary folder, and move each of its files into `folder`, where others stay."""
    sync_tree(temporary)
    for file in sorted(temporary.iterdir()):
        file.replace(folder / file.name)
    sync(folder)


def remove_leftovers(folder: Path, name: str = "", *, alone: bool = False) -> None:
    """Remove the temporary files of processes that were killed, of `name` or of all in the folder.

    Those of other machines may still be written to, and stay, unless this one is `alone` there.
    """
    try:
        entries = list(os.scandir(folder))
    except PermissionError:  # the folder may be writable, and not readable
        return
    for entry in entries:
        found = TEMPORARY_NAME.fullmatch(entry.name)
        if (
            found
            and name in ("", found[3])
            and (alone or _is_abandoned(entry, int(found[1]), found[2]))
        ):
            _remove(Path(entry.path))


def sync(path: Path) -> None:
    """Write a file's bytes, or a folder's names, to the disk before anything else is done."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_open_file(file: IO[bytes]) -> None:
    """Write what was written to an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """Sync a new folder with all in it, and give its files the permissions of the folder.

    The umask decided on the folder; safetensors and tempfile write with mode 0600 whatever it is.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in sorted(folder.rglob("*")):
        path.chmod(mode if path.is_dir() else mode & 0o666)
        sync(path)
    sync(folder)


def write_manifest(folder: Path, hashed_bytes: float = HASHED_BYTES) -> None:
    """Write the sizes of a folder's files, and the digests of those of at most `hashed_bytes`."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {
        path.relative_to(folder).as_posix(): (size, _digest(path) if size <= hashed_bytes else None)
        for path in found
        for size in (path.stat().st_size,)
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def find_damage(folder: Path, *needed: str) -> str | None:
    """Compare a folder with its manifest, and return the first difference; None where it is whole.

    The files `needed` must be in the manifest.
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


def make_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder of the cache; where it is missing or damaged, have `make` fill it first.

    `make` is given a temporary folder. One process makes it, and others wait.
    """
    if find_damage(folder) is None:
        return folder
    with locked(folder):
        damage = find_damage(folder)
        if damage is None:  # another process has made it meanwhile
            return folder
        if folder.exists():
            logger.info("%s is damaged (%s) and is made again", folder, damage)
        with atomic_replace(folder) as temporary:
            temporary.mkdir()
            try:
                make(temporary)
                write_manifest(temporary)
            except OSError as error:
                # Libraries do not say where a disk was full.
                error.filename = error.filename or str(folder)
                raise
    return folder


def compute_once(folder: Path, compute: Callable[[], Any]) -> Any:
    """Return the value kept in a folder of the cache, computed the first time, as JSON has it."""
    make_once(
        folder,
        lambda made: (made / VALUE).write_text(json.dumps(compute()), encoding="utf-8"),
    )
    return json.loads((folder / VALUE).read_text(encoding="utf-8"))


def read_cached_value(folder: Path) -> Any:
    """Read the value kept in a folder of the cache; return None where there is none."""
    if find_damage(folder, VALUE):
        return None
    return json.loads((folder / VALUE).read_text(encoding="utf-8"))


def write_cached_value(folder: Path, value: Any) -> None:
    """Replace the value kept in a folder of the cache."""
    with locked(folder), atomic_replace(folder) as temporary:
        temporary.mkdir()
        (temporary / VALUE).write_text(json.dumps(value), encoding="utf-8")
        write_manifest(temporary)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only thread of all processes that makes `path`; others wait, and the log says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))  # a kill releases it
    try:
        lock.acquire(timeout=QUIET_WAIT_SECONDS)
    except Timeout:
        logger.info("another process makes %s: waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_failed_write(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in DISK_FULL
    from safetensors import SafetensorError  # seldom needed

    return isinstance(error, SafetensorError) or any(s in str(error) for s in DISK_FULL_SIGNS)


@functools.cache
def _hash_machine() -> str:
    """Return a short name of this machine: others that share the folder number processes alike."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _is_abandoned(entry: "os.DirEntry[str]", process: int, machine: str) -> bool:
    """Whether a temporary file was written by a process of this machine that has ended."""
    if machine != _hash_machine():
        return False
    import psutil  # a fiftieth of a second, and seldom needed

    try:
        writer = psutil.Process(process)
        modified = entry.stat(follow_symlinks=False).st_mtime
        is_another = writer.create_time() > modified + CLOCK_DIFFERENCE_SECONDS
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
