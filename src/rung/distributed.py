"""The processes that train together under `torchrun`: rank, world size, and work of the main one.

`torchrun` starts and numbers the processes. The main process, rank 0, reads, writes and reports for
all of them. Without `torchrun` there is one process, and nothing here costs anything. The Trainer
shares the gradients.
"""

import functools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from rung.errors import RunError, RungError

P = ParamSpec("P")
T = TypeVar("T")

# The launcher ends the other processes within this time once one of them has failed.
TERMINATION_SECONDS = 10.0
# The others wait this long for the main process while it reads and tokenizes.
GROUP_TIMEOUT = timedelta(weeks=4)

_runs_on_main_only: ContextVar[bool] = ContextVar("runs_on_main_only", default=False)


class OtherProcessError(RuntimeError):
    """An error of another process that no user can mend: its kind and its message."""


def world_size() -> int:
    """Count the processes that train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that reads, writes and reports for all."""
    return rank() == 0


def launch_command() -> str:
    """Write how `rung` was started here, as a line to type."""
    if world_size() == 1:
        return "rung"
    here = os.environ.get("LOCAL_WORLD_SIZE", str(world_size()))
    # With several machines the line has more options, which torchrun does not pass on.
    more = "" if int(here) == world_size() else " ..."
    return f"torchrun --nproc-per-node {here}{more} -m rung"


def on_main(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function to run on the main process only, and to return its result on every one.

    All processes call it; the others wait, and raise the error that the main process raises. The
    result travels pickled. Inside it, functions decorated so run as plain ones; nothing else that
    all processes do together may be called there.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if world_size() == 1 or _runs_on_main_only.get():
            return function(*args, **kwargs)
        if is_main():
            return _run_and_broadcast(functools.partial(function, *args, **kwargs))
        result, error = _broadcast([None, None])
        if error is not None:
            raise error
        return result

    return run


def raise_together(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that every process runs, so that all raise an error where one fails.

    The error is that of the lowest rank that failed.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if world_size() == 1:
            return function(*args, **kwargs)
        result, error = None, None
        try:
            result = function(*args, **kwargs)
        except Exception as caught:
            error = caught
        errors: list[Any] = [None] * world_size()
        mine = _make_picklable(error) if error else None
        _torch_distributed().all_gather_object(errors, mine, group=_process_group())
        failed = next((at for at, other in enumerate(errors) if other is not None), None)
        if failed is not None:
            raise error if error and failed == rank() else errors[failed] from None
        return result  # type: ignore[return-value]

    return run


def broadcast(value: T) -> T:
    """Return the main process's value on every process."""
    return on_main(lambda: value)()


def gather(value: T) -> list[T]:
    """Return the values of all processes by rank on the main one, and an empty list on the others.

    The values travel pickled.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    _torch_distributed().gather_object(
        value, values if is_main() else None, dst=0, group=_process_group()
    )
    return values if is_main() else []


def all_reduce_max(*values: int) -> list[int]:
    """Return the largest of each value over all processes.

    It takes a fraction of a millisecond on one machine.
    """
    if world_size() == 1:
        return list(values)
    import torch

    row = torch.tensor(values)
    _torch_distributed().all_reduce(
        row, op=_torch_distributed().ReduceOp.MAX, group=_process_group()
    )
    return row.tolist()


def defer_to_main() -> None:
    """Wait before an error is reported by another process than the main one.

    Where the main process reports it too, the launcher ends this process meanwhile, and the user
    reads the error once.
    """
    if not is_main():
        time.sleep(TERMINATION_SECONDS)


def destroy_process_group() -> None:
    """Leave the other processes, at the end of the work that was done together."""
    if world_size() > 1 and _process_group.cache_info().currsize:
        _torch_distributed().destroy_process_group()
        _process_group.cache_clear()


def _run_and_broadcast(make: Callable[[], T]) -> T:
    """Run on the main process, and send the result or the error to the others."""
    token = _runs_on_main_only.set(True)
    try:
        result = make()
    except BaseException as error:
        # After Ctrl-C each process ends by itself, and the others may be gone.
        with suppress(RuntimeError):
            _broadcast([None, _make_picklable(error)])
        raise
    finally:
        _runs_on_main_only.reset(token)
    _broadcast([result, None])
    return result


def _broadcast(values: list[Any]) -> list[Any]:
    """Fill the list on all processes with what it holds on the main one."""
    _torch_distributed().broadcast_object_list(values, src=0, group=_process_group())
    return values


@functools.cache
def _process_group() -> Any:
    """Join the processes on their CPUs, for small objects and with a longer timeout than gradients.

    Raises `RunError` when there are more processes than GPUs on a machine that has some.
    """
    import torch

    backend, here = "gloo", int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        gpus, wanted = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if wanted > gpus:
            raise RunError(
                f"{wanted} processes on a machine with {gpus} GPUs: start as many as there are "
                f"GPUs, with torchrun --nproc-per-node {gpus}"
            )
        torch.cuda.set_device(here)
        backend = "cuda:nccl,cpu:gloo"
    if not _torch_distributed().is_initialized():
        _torch_distributed().init_process_group(backend)
    return _torch_distributed().new_group(backend="gloo", timeout=GROUP_TIMEOUT)


def _torch_distributed() -> Any:
    import torch.distributed

    return torch.distributed


def _make_picklable(error: BaseException) -> BaseException:
    """Return the error as other processes can raise it."""
    if isinstance(error, RungError | KeyboardInterrupt):
        return type(error)(*error.args)
    if isinstance(error, OSError):
        return OSError(*error.args, *((error.filename,) if error.filename else ()))
    if isinstance(error, OtherProcessError):  # it names its kind already
        return error
    return OtherProcessError(f"{type(error).__name__}: {error}")
