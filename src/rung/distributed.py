"""Several processes as one: how many train together, which of them this is, and what only the first
of them does.

`torchrun` starts the processes and numbers them; the first, the main one, reads, writes and speaks
for all. Without `torchrun` there is one process, and nothing here costs anything. How gradients are
shared is the Trainer's.
"""

import functools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from rung.errors import RunError, RungError

T = TypeVar("T")

PATIENCE = 10.0  # seconds in which the launcher ends the other processes once one has failed
LONGEST_WAIT = timedelta(weeks=4)  # for the main process, while it reads and tokenizes


class OtherProcessError(RuntimeError):
    """What went wrong in another process, that no user can mend: the kind of the error and its
    message.
    """


def count() -> int:
    """How many processes train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def number() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Whether this one reads, writes and speaks for all."""
    return number() == 0


def command() -> str:
    """How `rung` was started here, as a line to type."""
    if count() == 1:
        return "rung"
    here, everywhere = os.environ.get("LOCAL_WORLD_SIZE", str(count())), count()
    elsewhere = (
        "" if int(here) == everywhere else " ..."
    )  # what else was on torchrun's line, it does not say
    return f"torchrun --nproc-per-node {here}{elsewhere} -m rung"


def from_main(make: Callable[[], T]) -> T:
    """What `make` returns on the main process, on every process: the others wait for it, and fail
    as it does.

    It goes to the others pickled. Within it there are no others: nothing that all do together may
    be called.
    """
    if count() == 1:
        return make()
    told: list[Any] = [None, None]  # the value, and the error
    if not is_main():
        _distributed().broadcast_object_list(told, src=0, group=_group())
        if told[1] is not None:
            raise told[1]
        return told[0]
    try:
        told[0] = make()
    except BaseException as error:
        told[1] = _portable(error)
        with suppress(RuntimeError):  # the others are gone: after Ctrl-C each ends by itself
            _distributed().broadcast_object_list(told, src=0, group=_group())
        raise
    _distributed().broadcast_object_list(told, src=0, group=_group())
    return told[0]


def together(make: Callable[[], T]) -> T:
    """What `make` returns here; where it fails on one process it fails on all, with the error of
    the first that did.
    """
    if count() == 1:
        return make()
    made, error = None, None
    try:
        made = make()
    except Exception as caught:
        error = caught
    errors: list[Any] = [None] * count()
    _distributed().all_gather_object(errors, _portable(error) if error else None, group=_group())
    failed = next((rank for rank, told in enumerate(errors) if told is not None), None)
    if failed is not None:
        raise error if error and failed == number() else errors[failed] from None
    return made  # type: ignore[return-value]


def gather(value: T) -> list[T]:
    """The values of all processes, in their order, on the main one; nothing on the others. They go
    there pickled.
    """
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    _distributed().gather_object(value, values if is_main() else None, dst=0, group=_group())
    return values if is_main() else []


def agree(*values: int) -> list[int]:
    """The largest of each value over all processes: a fraction of a millisecond on one machine."""
    if count() == 1:
        return list(values)
    import torch

    row = torch.tensor(values)
    _distributed().all_reduce(row, op=_distributed().ReduceOp.MAX, group=_group())
    return row.tolist()


def give_way() -> None:
    """Before this process says what went wrong: if the main one says it too, the launcher ends this
    one meanwhile.
    """
    if not is_main():
        time.sleep(PATIENCE)


def leave() -> None:
    """Let go of the others, at the end of what was done together."""
    if count() > 1 and _group.cache_info().currsize:
        _distributed().destroy_process_group()
        _group.cache_clear()


@functools.cache
def _group() -> Any:
    """The processes, joined on their CPUs: for what is small, and may be waited for longer than for
    gradients.

    Raises `RunError` when there are more processes than GPUs on a machine that has some.
    """
    import torch

    backend, here = "gloo", int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        gpus, wanted = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if wanted > gpus:
            raise RunError(
                f"{wanted} processes on a machine with {gpus} GPUs: torchrun --nproc-per-node "
                f"{gpus}"
            )
        torch.cuda.set_device(here)
        backend = "cuda:nccl,cpu:gloo"
    if not _distributed().is_initialized():
        _distributed().init_process_group(backend)
    return _distributed().new_group(backend="gloo", timeout=LONGEST_WAIT)


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed


def _portable(error: BaseException) -> BaseException:
    """The error as other processes can raise it."""
    if isinstance(error, RungError | KeyboardInterrupt):
        return type(error)(*error.args)
    if isinstance(error, OSError):
        return OSError(*error.args, *((error.filename,) if error.filename else ()))
    if isinstance(error, OtherProcessError):  # it has been told once
        return error
    return OtherProcessError(f"{type(error).__name__}: {error}")
