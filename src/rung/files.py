"""Write files atomically, and keep results in folders of a cache.

An entry of the cache is a folder with a manifest, which holds the sizes and digests of its files.
One process makes an entry while others wait. An entry is checked each time that it is opened, and
is made again where it is damaged.
"""

import csv
import functools
import hashlib
import io
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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from rung.errors import RunError
from rung.full_disk import DISK_FULL

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VALUE = "value.json"
# A larger file of the cache is checked by its size alone: reading all of it takes seconds.
HASHED_BYTES = 1 << 24
# The log reports a wait for another process after this many seconds.
QUIET_WAIT_SECONDS = 1.0
# The clocks of the system and of a file system may differ by this many seconds.
CLOCK_DIFFERENCE_SECONDS = 2.0
# A temporary name consists of the process id, the machine, a random part and the final name.
TEMPORARY_NAME = re.compile(r"\.(\d+)-([0-9a-f]{6})-[0-9a-f]{8}\.(.+)", re.DOTALL)


def cache_folder() -> Path:
    """Return the folder of the cache: `$RUNG_CACHE`, or `rung` in the user's cache folder.

    For a user without a home folder, the cache is in the folder for temporary files. Raises
    `RunError` where another user owns the cache there.
    """
    if folder := os.environ.get("RUNG_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or (
        "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    )
    try:
        return Path(base).expanduser() / "rung"
    except RuntimeError:  # The user has no home folder.
        place = Path(tempfile.gettempdir()) / f"rung-{os.getuid()}"
        if place.exists() and place.stat().st_uid != os.getuid():
            raise RunError(
                f"there is no home folder for a cache, and {place} is another user's: name one in "
                f"RUNG_CACHE"
            ) from None
        return place


def to_json(facts: Any, indent: int | None = None) -> str:
    """Write facts as JSON, with null for NaN and infinity, which JSON does not have.

    A file name that is not UTF-8 has lone surrogates. They are escaped, so that the same name is
    read again.
    """

    def mend(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: mend(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [mend(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json.dumps(mend(facts), indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def to_csv(rows: Iterable[Mapping[str, Any]], delimiter: str = ",") -> str:
    """Write rows with the same keys as lines of a table, the keys first.

    None is an empty cell, and a list its values with spaces between them.
    """

    def mend(value: Any) -> Any:
        if isinstance(value, bool):
            return int(value)
        return " ".join(map(str, value)) if isinstance(value, list | tuple) else value

    lines = io.StringIO()
    writer = csv.writer(lines, delimiter=delimiter, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(row)
        writer.writerow([mend(value) for value in row.values()])
    return lines.getvalue()


def check_writable(path: Path) -> None:
    """Raise `RunError` where the folder of `path` is missing, or no file can be made in it.

    A file without a name is made in it and is gone at once: permissions alone do not tell, as of a
    file system that can only be read.
    """
    if not path.parent.is_dir():
        raise RunError(f"{path.parent} is no folder: make it first, or choose another place")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise RunError(
            f"{path.parent} cannot be written to ({error.strerror}): choose another place"
        ) from error


def check_writable_file(path: Path, *sources: str | Path) -> None:
    """Raise `RunError` where `path` cannot be replaced by a file, or is one of the files read."""
    _check_no_file_lost(path)
    for source in (Path(each).expanduser() for each in sources if each and path.exists()):
        if source.exists() and path.samefile(source):
            raise RunError(f"{path} is the file that is read: choose another place")
        if source.resolve() in path.resolve().parents:
            raise RunError(f"{path} is a file of {source}: choose another place")
    check_writable(path)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old file or the new one, and never a part."""
    with atomic_replace(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or a folder, which replaces `path` at the end.

    A reader sees the old content or the new one, and never a part. After an error nothing is left.
    Files that a killed process left are removed when `path` is written the next time.
    """
    with temporary_path(path) as temporary:
        yield temporary
        move_into_place(temporary, path)


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` that no other process or thread has, and remove it at the end."""
    remove_leftovers(path.parent, path.name)
    name = f".{os.getpid()}-{_hash_machine()}-{secrets.token_hex(4)}.{path.name}"
    temporary = path.with_name(name)
    try:
        yield temporary
    except OSError as error:
        # A full disk comes without a path, and the temporary one tells a user nothing.
        if error.filename == str(temporary) or (not error.filename and error.errno in DISK_FULL):
            error.filename = str(path)
            if error.errno not in DISK_FULL and not path.is_relative_to(cache_folder()):
                raise RunError(
                    f"{path} cannot be written to ({error.strerror}): choose another place"
                ) from error
        raise
    finally:
        _remove(temporary)


def move_into_place(temporary: Path, path: Path) -> None:
    """Sync a file or a folder that was written under a temporary path, and rename it to `path`.

    Raises `RunError` where a file would replace a folder, a device or a pipe.
    """
    if not temporary.is_dir():
        _check_no_file_lost(path)
    sync_tree(temporary) if temporary.is_dir() else sync(temporary)
    if path.is_dir() and not path.is_symlink():
        with temporary_path(path) as old:
            path.replace(old)
            temporary.replace(path)
    else:
        temporary.replace(path)
    sync(path.parent)


def move_files_into_place(temporary: Path, folder: Path) -> None:
    """Sync a temporary folder, and move its files into `folder`, which keeps its other files."""
    sync_tree(temporary)
    for file in sorted(temporary.iterdir()):
        file.replace(folder / file.name)
    sync(folder)


def remove_leftovers(folder: Path, name: str = "", *, alone: bool = False) -> None:
    """Remove the temporary files of killed processes, for the path `name` or for all paths.

    Files of other machines stay, because these may still write to them. With `alone`, no other
    process uses the folder, and all temporary files are removed.
    """
    try:
        entries = list(os.scandir(folder))
    except PermissionError:  # A folder that may be written to need not be readable.
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
    """Write a file's bytes, or a folder's entries, from the system's buffers to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder.
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_open_file(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """Sync a new folder with everything in it, and give its files the folder's permissions.

    They follow the umask, which safetensors and tempfile ignore: these write with mode 0600.
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in sorted(folder.rglob("*")):
        path.chmod(mode if path.is_dir() else mode & 0o666)
        sync(path)
    sync(folder)


def write_manifest(folder: Path, hashed_bytes: float = HASHED_BYTES) -> None:
    """Write the sizes of a folder's files, and digests of files of at most `hashed_bytes`."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {
        path.relative_to(folder).as_posix(): (size, _digest(path) if size <= hashed_bytes else None)
        for path in found
        for size in (path.stat().st_size,)
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def find_damage(folder: Path, *needed: str) -> str | None:
    """Return the first difference between a folder and its manifest, or None if it is whole.

    The manifest must name the files in `needed`.
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


@contextmanager
def make_once(folder: Path) -> Iterator[Path | None]:
    """Yield a temporary folder to fill, which becomes `folder` of the cache at the end.

    Where `folder` is there and whole, yield None. One process fills it while others wait.
    """
    if find_damage(folder) is None:
        yield None
        return
    with locked(folder):
        damage = find_damage(folder)  # Another process may have made it during the wait.
        if damage is None:
            yield None
            return
        if folder.exists():
            logger.info("%s is damaged (%s) and is made again", folder, damage)
        with atomic_replace(folder) as temporary:
            temporary.mkdir()
            yield temporary
            write_manifest(temporary)


def write_value(folder: Path, value: Any) -> None:
    """Write a value into a folder that `make_once` yielded."""
    (folder / VALUE).write_text(json.dumps(value), encoding="utf-8")


def read_cached_value(folder: Path) -> Any:
    """Read the value in a folder of the cache; return None where it is missing or damaged.

    The value is returned as JSON stores it: a tuple becomes a list.
    """
    if find_damage(folder, VALUE):
        return None
    return json.loads((folder / VALUE).read_text(encoding="utf-8"))


def write_cached_value(folder: Path, value: Any) -> None:
    with locked(folder), atomic_replace(folder) as temporary:
        temporary.mkdir()
        write_value(temporary, value)
        write_manifest(temporary)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let only one thread of all processes make `path`; the others wait, and log it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))  # The system releases it after a kill.
    try:
        lock.acquire(timeout=QUIET_WAIT_SECONDS)
    except Timeout:
        logger.info("another process makes %s: waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_no_file_lost(path: Path) -> None:
    """Raise `RunError` where a file at `path` would replace a folder, a device or a pipe."""
    if path.is_dir():
        raise RunError(f"{path} is a folder: name a file")
    is_stream = path.is_symlink() and path.readlink().is_relative_to("/proc")  # as /dev/stdout
    if str(path) == "-" or is_stream or (path.exists() and not path.is_file()):
        raise RunError(f"{path} stands for a device or a pipe: name a file")


@functools.cache
def _hash_machine() -> str:
    """Return a short hash of the host name: two machines may have the same process id."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _is_abandoned(entry: "os.DirEntry[str]", process: int, machine: str) -> bool:
    """Return whether a temporary file was written by a process of this machine that has ended."""
    if machine != _hash_machine():
        return False
    import psutil  # This import takes 20 ms and is seldom needed.

    try:
        writer = psutil.Process(process)
        modified = entry.stat(follow_symlinks=False).st_mtime
        # A process that began after the file was written only reuses the writer's process id.
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
