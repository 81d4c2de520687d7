"""The lock of a run's folder: one command at a time writes into it."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rung import distributed
from rung.errors import RunError
from rung.runs.folder import HOLDER, LOCK, make_folder

logger = logging.getLogger(__name__)


@contextmanager
def lock_folder(folder: Path, *, together: bool = False) -> Iterator[None]:
    """Make `folder`, and be the only command that writes into it; a kill releases it.

    With `together` all processes call this, and the main one locks it for them. Raises `RunError`
    where another command has locked it, and names that one.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    held: list[FileLock] = []

    def acquire() -> None:
        held.extend(_acquire(make_folder(folder)))
        (folder / HOLDER).write_text(
            json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8"
        )

    (distributed.on_main(acquire) if together else acquire)()
    try:
        yield
    finally:
        for lock in held:
            for name in (HOLDER, LOCK):
                with suppress(OSError):
                    (folder / name).unlink()
            lock.release()
            with suppress(OSError):  # it is not empty
                for path in missing:
                    path.rmdir()


def check_unlocked(folder: Path) -> None:
    """Raise `RunError` where another process has locked the folder."""
    if (folder / LOCK).exists():
        for lock in _acquire(folder):
            lock.release()


def _acquire(folder: Path) -> list[FileLock]:
    """Acquire the folder's lock; return none where its file system has no locks."""
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
