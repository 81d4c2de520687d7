"""Lock a run's folder, so that one command at a time writes into it."""

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
    """Make `folder` and lock it, so that no other command writes into it.

    The lock is released when the command is killed. With `together`, all processes call this
    function, and the main one locks the folder for them. Raises `RunError` where another command
    has locked the folder, and names its process.
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
            # A folder that is not empty stays.
            with suppress(OSError):
                for path in missing:
                    path.rmdir()


def check_unlocked(folder: Path) -> None:
    """Raise `RunError` where another process has locked the folder."""
    if (folder / LOCK).exists():
        for lock in _acquire(folder):
            lock.release()


def _acquire(folder: Path) -> list[FileLock]:
    """Acquire the folder's lock; return an empty list where its file system has no locks."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
            who = f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            # The other command has locked the folder and has not yet written its process there.
            who = "another process"
        raise RunError(
            f"{folder} is being written by {who}: wait until that has ended, or choose another "
            f"folder with --out"
        ) from None
    except (OSError, NotImplementedError) as error:
        logger.debug("%s cannot be locked: %s", folder, error)
        return []
    return [lock]
