"""Ctrl-C during a workflow, and where the work lies that was saved."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rung.errors import RungError


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop button, ended a workflow; the work so far is in `folder`."""

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


@contextmanager
def name_saved_work(folder: Path, again: str) -> Iterator[None]:
    """Raise `Interrupted` after Ctrl-C, with `folder` and the call that goes on from it."""
    try:
        with _note_interrupts():
            yield
    except KeyboardInterrupt as error:
        message = f"stopped; the work so far is saved in {folder}. Go on with: {again}"
        raise Interrupted(message, folder) from error


@contextmanager
def _note_interrupts() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for an unexpected error after Ctrl-C.

    Spark swallows the interrupt and raises an error of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    except (RungError, OSError):
        raise
    except Exception as error:
        with suppress(BlockingIOError):  # nothing was noted
            if signal.SIGINT in os.read(reading, 4096):
                raise KeyboardInterrupt from error
        raise
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)
