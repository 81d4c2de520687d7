"""Recognise a full disk by the errors of many libraries, and say it in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rung.errors import RunError, first_line

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of torch.save, numpy's tofile and the Rust library tokenizers contain one of these texts
# when a disk is full.
DISK_FULL_SIGNS = (
    *("PytorchStreamWriter", "inline_container", "requested and"),
    *(f"(os error {number})" for number in DISK_FULL),
)


@contextmanager
def explain_failed_writes(place: Path) -> Iterator[None]:
    """Raise `RunError` where the block fails because there is no room at `place`."""
    try:
        yield
    except Exception as error:
        if not _is_failed_write(error):
            raise
        raise RunError(describe_failed_write(place, error)) from error


def describe_failed_write(place: object, error: Exception) -> str:
    """Say that a file at `place` found no room, why, and the remedy."""
    reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
    is_limited = getattr(error, "errno", None) == errno.EFBIG or (
        f"(os error {errno.EFBIG})" in str(error)
    )
    remedy = "make room there" + (", or allow larger files (`ulimit -f`)" if is_limited else "")
    return f"{place} could not be written to ({reason}): {remedy}; what was saved is kept"


def _is_failed_write(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in DISK_FULL
    from safetensors import SafetensorError  # This import is seldom needed.

    # A `RunError` explains itself.
    found = any(sign in str(error) for sign in DISK_FULL_SIGNS) and not isinstance(error, RunError)
    return found or isinstance(error, SafetensorError)
