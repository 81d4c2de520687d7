"""The thread in which the served models compute."""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from functools import partial

import torch

from rung.serve.api_errors import ApiError
from rung.serve.engine import Engine

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2  # between two looks at the clock, while all readers are waited for


class Worker:
    """The thread that steps all engines in turn.

    One thread serves all of them: each thread that computes on several cores keeps helper threads
    of its own, and where these outnumber the cores they sleep at every step instead of spinning.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = engines
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None
        self.is_stopping = False
        self.last_round = 0.0  # when it last began to step the engines
        for engine in engines:
            engine.attach(self.changed, lambda: self.is_working)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread, for readers in this event loop."""
        self.is_stopping = False
        self.last_round = time.monotonic()
        for engine in self.engines:
            engine.announce = partial(loop.call_soon_threadsafe, engine.notify_readers)
        self.thread = threading.Thread(target=self._run, name="rung-worker", daemon=True)
        self.thread.start()

    def request_stop(self) -> None:
        """Have all texts and the thread end after the current step."""
        with self.changed:
            self.is_stopping = True
            self.changed.notify()

    def stop(self) -> None:
        """Stop the thread and wait for its end."""
        self.request_stop()
        if self.thread:
            self.thread.join()
            self.thread = None

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self.thread is not None and self.thread.is_alive()

    @property
    def is_working(self) -> bool:
        """Whether the thread runs and no step has taken longer than an answer may."""
        is_stuck = time.monotonic() - self.last_round > max(
            engine.limits.seconds for engine in self.engines
        )
        is_busy = any(engine.running for engine in self.engines)
        return self.is_alive and not (is_busy and is_stuck)

    def _run(self) -> None:
        """Step the engines until the stop; an error outside a step resets them."""
        while not self.is_stopping:
            try:
                self._step_engines()
            except BaseException:
                logger.exception("the worker failed, and begins again")
                time.sleep(POLL_SECONDS)
                for engine in self.engines:
                    engine.reset()
        for engine in self.engines:
            engine.end_all(ApiError(503, "the server is shutting down", code="shutting_down"))

    @torch.inference_mode()
    def _step_engines(self) -> None:
        while not self.is_stopping:
            self.last_round = time.monotonic()
            progressed = [engine.step() for engine in self.engines]
            if not any(progressed):
                self._wait()

    def _wait(self) -> None:
        with self.changed:
            is_busy = any(
                engine.running or engine.waiting or engine.paused for engine in self.engines
            )
            can_begin = any(engine.waiting and engine.has_room for engine in self.engines)
            if not can_begin and not self.is_stopping:
                self.changed.wait(POLL_SECONDS if is_busy else None)


def reserve_core() -> None:
    """Let models compute on all cores but one, which the readers need.

    Threads that share a step wait for one another many times in it, and would wait for a core each
    time. Steps in C take that core too where it is free and pays (`ThreadTrials`). Call this before
    anything is computed: helper threads that exist are kept.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))
