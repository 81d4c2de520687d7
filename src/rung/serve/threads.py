"""Work in threads: each piece in its turn, and no longer than somebody waits for it."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


async def run_in_turn(work: Callable[[], T], turn: CapacityLimiter) -> T:
    """What `work` comes to, in a thread.

    When this is cancelled the work is given up: it does not begin, or it ends at its next operation
    on tensors. It keeps its turn until then, so that what is given up never adds up.
    """
    is_given_up = threading.Event()

    def begin() -> T:
        with _Watch(is_given_up):
            return work()

    task = asyncio.create_task(to_thread.run_sync(begin, limiter=turn))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        is_given_up.set()
        task.add_done_callback(
            lambda ended: ended.cancelled() or ended.exception()
        )  # else the loop complains of it
        raise


class _GivenUpError(Exception):
    """Nobody waits any more."""


class _Watch(TorchFunctionMode):
    """Ends the work of this thread, before it begins or at an operation on tensors, once it is
    given up.

    It raises once: what tidies up on the way out (gradients are switched on again by such an
    operation) is let through.
    """

    def __init__(self, is_given_up: threading.Event) -> None:
        super().__init__()
        self.is_given_up, self.has_raised = is_given_up, False

    def __enter__(self) -> "_Watch":
        self._look()
        super().__enter__()
        return self

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self._look()
        return func(*args, **(kwargs or {}))

    def _look(self) -> None:
        if self.is_given_up.is_set() and not self.has_raised:
            self.has_raised = True
            raise _GivenUpError
