"""Connections: as many as there are descriptors for, none for nothing, and all are told when the
server ends.
"""

import asyncio
import logging
import os
import socket
import time
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rung.serve.engine import Worker

try:
    import resource
except ModuleNotFoundError:  # as on Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

GRACE = 5.0  # seconds that answers have to end in when the server is stopped
TOLD = 2.0  # seconds that readers then have to read that their answers have ended
# Seconds for the headers of a request to arrive; clients keep a connection for 5, and must close it
# first.
SILENT = 15
BACKLOG = 128  # connections that are accepted at once
SPARE = (
    2 * BACKLOG
)  # descriptors that are for other things, or for connections that are being closed
WITHOUT_LIMIT = 1024  # connections where nobody says how many there may be
OUT_OF_DESCRIPTORS = 60.0  # seconds between two lines that say so


def raise_descriptors() -> None:
    """Take as many descriptors as this process may have."""
    if resource:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def count_connections() -> int:
    """How many there may be."""
    if (
        not resource
        or (limit := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) == resource.RLIM_INFINITY
    ):
        return WITHOUT_LIMIT
    return max(limit // 2, limit - SPARE)


class Connection(H11Protocol):
    """One of at most so many: another takes the place of the one that has been idle for longest."""

    since = 0.0  # when it last began to be idle
    stalled: tuple[int, float] = (0, 0.0)  # bytes that its reader did not take, and since when

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Make room where there is none."""
        super().connection_made(cast(asyncio.Transport, transport))
        self.since = time.monotonic()
        if len(self.connections) > count_connections():
            idle = [
                other
                for other in self.connections
                if isinstance(other, Connection) and other.is_idle
            ]
            min(idle, key=lambda other: other.since, default=self).transport.abort()

    def on_response_complete(self) -> None:
        """It is idle from now on."""
        self.since = time.monotonic()
        super().on_response_complete()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def close_if_idle(self, now: float, seconds: float) -> None:
        """Close it where no request has come for too long, or nothing was read for `seconds`."""
        left = self.transport.get_write_buffer_size()
        if left != self.stalled[0]:
            self.stalled = left, now
        if left and now - self.stalled[1] > seconds:
            self.transport.abort()
        elif self.is_idle and not left and now - self.since > SILENT:
            self.transport.close()


class Server(uvicorn.Server):
    """Serves until it is stopped: answers have a moment to end in, the others end with an error.
    Stopped twice, it ends at once.
    """

    def __init__(self, app: Any, worker: Worker, seconds: float) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            log_level="error",
            access_log=False,
            backlog=BACKLOG,
            timeout_keep_alive=SILENT,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.worker, self.seconds = worker, seconds
        self.complained = -OUT_OF_DESCRIPTORS  # when

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        asyncio.get_running_loop().set_exception_handler(self._complain)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; True ends it."""
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.close_if_idle(time.monotonic(), self.seconds)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, wait for the answers, end those that are left, and tell their
        readers.
        """
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._wait_for_readers(GRACE)
        self.worker.end()
        while self.worker.is_alive:
            await asyncio.sleep(0.02)
        await self._wait_for_readers(TOLD)
        for task in list(self.server_state.tasks):
            task.cancel()
        await self._wait_for_readers(TOLD)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops it; at the second one nothing is waited for."""
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    async def _wait_for_readers(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (
            self.server_state.connections or self.server_state.tasks
        ) and time.monotonic() < until:
            await asyncio.sleep(0.02)

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """As the loop does by itself, but that there are no descriptors left only once a minute."""
        if "out of system resource" in context.get("message", ""):
            if time.monotonic() - self.complained < OUT_OF_DESCRIPTORS:
                return
            self.complained = time.monotonic()
            logger.error("no descriptors are left for new connections: raise the limit (ulimit -n)")
            return
        loop.default_exception_handler(context)
