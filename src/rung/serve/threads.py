"""Run work in threads, and stop it when its caller is cancelled."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


async def run_in_thread(work: Callable[[], T], limiter: CapacityLimiter) -> T:
    """Run `work` in a thread as soon as the limiter has a place for it, and return its result.

    When the caller is cancelled, the work does not begin, or ends at its next operation on tensors.
    The work keeps its place in the limiter until then, so that cancelled work does not pile up.
    """
    is_cancelled = threading.Event()

    def begin() -> T:
        with _CancelWatch(is_cancelled):
            return work()

    task = asyncio.create_task(to_thread.run_sync(begin, limiter=limiter))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        is_cancelled.set()
        # The event loop logs an exception that was never retrieved, so retrieve it.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        raise


class _CancelledError(Exception):
    """Raised in work whose caller was cancelled."""


class _CancelWatch(TorchFunctionMode):
    """A mode that ends cancelled work at its next operation on tensors.

    The mode raises only once, because cleaning up needs such operations too: switching gradients on
    again is one of them.
    """

    def __init__(self, is_cancelled: threading.Event) -> None:
        super().__init__()
        self.is_cancelled, self.has_raised = is_cancelled, False

    def __enter__(self) -> "_CancelWatch":
        self._check()
        super().__enter__()
        return self

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self._check()
        return func(*args, **(kwargs or {}))

    def _check(self) -> None:
        if self.is_cancelled.is_set() and not self.has_raised:
            self.has_raised = True
            raise _CancelledError
