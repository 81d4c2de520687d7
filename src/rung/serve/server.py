"""The HTTP server: it limits connections, closes idle ones, and shuts down in order."""

import asyncio
import logging
import os
import socket
import time
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rung.serve.worker import Worker

try:
    import resource
except ModuleNotFoundError:  # as on Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 5.0  # for running answers to finish when the server is stopped
FLUSH_SECONDS = 2.0  # for clients to read the end of their answers after that
# Seconds without a request after which a connection is closed. A client that keeps connections
# keeps them for 5 seconds, and must be the first to close.
IDLE_SECONDS = 15
BACKLOG = 128  # connections that are accepted at once
# File descriptors for everything else, and for connections that are being closed.
RESERVED_DESCRIPTORS = 2 * BACKLOG
DEFAULT_CONNECTIONS = 1024  # the limit if the system sets none
LOG_INTERVAL = 60.0  # seconds between two log lines about missing descriptors


def raise_descriptor_limit() -> None:
    """Raise the limit of open files as far as this process may, up to 65,536."""
    if resource:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def find_max_connections() -> int:
    """Return the limit of connections: that of open files, less a reserve."""
    if (
        not resource
        or (limit := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) == resource.RLIM_INFINITY
    ):
        return DEFAULT_CONNECTIONS
    return max(limit // 2, limit - RESERVED_DESCRIPTORS)


class Connection(H11Protocol):
    """A connection of HTTP/1.1, which may close an idle connection to make room for itself."""

    idle_since = 0.0
    unread: tuple[int, float] = (0, 0.0)  # bytes that the client has not read, and since when

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection, and close the longest idle one if there are too many.

        The new connection itself is closed if none is idle.
        """
        super().connection_made(cast(asyncio.Transport, transport))
        self.idle_since = time.monotonic()
        # Those aborted stay in the set until the loop has told them.
        open_ones = [
            other
            for other in self.connections
            if isinstance(other, Connection) and not other.transport.is_closing()
        ]
        if len(open_ones) > find_max_connections():
            idle = [other for other in open_ones if other.is_idle]
            min(idle, key=lambda other: other.idle_since, default=self).transport.abort()

    def on_response_complete(self) -> None:
        """Record that the connection is idle from now on."""
        self.idle_since = time.monotonic()
        super().on_response_complete()

    @property
    def is_idle(self) -> bool:
        """Return whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def close_if_idle(self, now: float, seconds: float) -> None:
        """Close the connection after `IDLE_SECONDS` without a request.

        Abort the connection if the client reads nothing of its answer for `seconds`.
        """
        left = self.transport.get_write_buffer_size()
        if left != self.unread[0]:
            self.unread = left, now
        if left and now - self.unread[1] > seconds:
            self.transport.abort()
        elif self.is_idle and not left and now - self.idle_since > IDLE_SECONDS:
            self.transport.close()


class Server(uvicorn.Server):
    """A server that lets running answers finish for a moment before it stops.

    Answers that take longer end with an error. A second signal ends the process at once.
    """

    def __init__(self, app: Any, worker: Worker, seconds: float) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            log_level="error",
            access_log=False,
            backlog=BACKLOG,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.worker, self.seconds = worker, seconds
        self.last_logged = -LOG_INTERVAL

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._log_exception)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Close idle connections once a second. Uvicorn calls this ten times a second."""
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.close_if_idle(time.monotonic(), self.seconds)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, wait for running answers, and end late ones with an error."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._wait_for_readers(SHUTDOWN_SECONDS)
        self.worker.request_stop()
        while self.worker.is_alive:
            await asyncio.sleep(0.02)
        await self._wait_for_readers(FLUSH_SECONDS)
        for task in list(self.server_state.tasks):
            task.cancel()
        await self._wait_for_readers(FLUSH_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down at the first signal, and end the process at once at the second."""
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)

    async def _wait_for_readers(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (
            self.server_state.connections or self.server_state.tasks
        ) and time.monotonic() < until:
            await asyncio.sleep(0.02)

    def _log_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log as the event loop does, but log a lack of descriptors only once a minute."""
        if "out of system resource" in context.get("message", ""):
            if time.monotonic() - self.last_logged < LOG_INTERVAL:
                return
            self.last_logged = time.monotonic()
            logger.error("no descriptors are left for new connections: raise the limit (ulimit -n)")
            return
        loop.default_exception_handler(context)
