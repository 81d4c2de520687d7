"""Serve runs to OpenAI's clients: one process, every rung, each with a loop that texts join and
leave.

app = build_app(load_served_models(["runs/python-docs"]))
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rung import __version__
from rung.errors import RunError, RungError
from rung.serve.registry import ServedModel, load_served_models

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.middleware.cors import CORSMiddleware
    from fastapi.responses import Response
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from starlette.exceptions import HTTPException

    from rung.serve import openai, playground
    from rung.serve.engine import Engine, Worker, reserve_core
    from rung.serve.middleware import (
        ApiError,
        Guard,
        Limits,
        Metrics,
        explain_body,
        find_hosts,
        read_key,
        read_origin,
    )
    from rung.serve.server import Server, raise_descriptors
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] in ("rung", "torch", "transformers"):
        raise
    raise RunError(
        f"serving needs {error.name}, which is not installed: pip install 'rung[serve]'"
    ) from error

__all__ = [
    "Limits",
    "ServedModel",
    "build_app",
    "find_hosts",
    "load_served_models",
    "open_port",
    "read_key",
    "read_origin",
    "reserve_core",
    "run_server",
]

NO_LIMITS = Limits()


def build_app(served: dict[str, ServedModel], limits: Limits = NO_LIMITS) -> FastAPI:
    """The server of these runs, as an ASGI application; its worker is there from its start to its
    end.
    """
    metrics = Metrics()
    engines = {name: Engine(run, limits, metrics) for name, run in served.items()}
    worker = Worker(list(engines.values()))

    @asynccontextmanager
    async def work(app: FastAPI) -> AsyncIterator[None]:
        worker.start(asyncio.get_running_loop())
        yield
        await asyncio.to_thread(worker.stop)

    app = FastAPI(title="rung", version=__version__, lifespan=work, docs_url=None, redoc_url=None)
    app.state.worker = worker
    app.include_router(openai.make_router(engines, limits))
    app.include_router(playground.make_router(engines))
    add_signs(app, worker, metrics)
    app.add_exception_handler(RequestValidationError, explain_refusal)
    app.add_exception_handler(HTTPException, explain_refusal)
    app.add_exception_handler(RungError, explain_refusal)
    app.add_exception_handler(Exception, explain_refusal)
    app.add_middleware(Guard, limits=limits, metrics=metrics)
    if limits.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(limits.origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )
    return app


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free.

    Raises `RunError` where none can.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, UnicodeError) as error:  # a name that is too long is no Unicode of a host
        why = (getattr(error, "strerror", None) or str(error)).split(" (while")[0]
        raise RunError(
            f"cannot listen at {host}, port {port} ({why}): choose others with --host and --port"
        ) from error


def run_server(served: dict[str, ServedModel], limits: Limits, listener: socket.socket) -> None:
    """Serve until Ctrl-C; answers that are under way then have a moment to end, and a second Ctrl-C
    gives them none.
    """
    raise_descriptors()
    app = build_app(served, limits)
    Server(app, app.state.worker, limits.seconds).run(sockets=[listener])


def add_signs(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    """`/health` and `/metrics`, for whoever watches the server."""

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the models are at work."""
        if not worker.is_working:
            raise ApiError(503, "the models are not at work", code="not_working")
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def explain_refusal(request: Request, error: Exception) -> Response:
    """Any other refusal, in the same form."""
    if isinstance(error, RequestValidationError):
        error = explain_body(error, request.headers.get("content-type", ""))
    if isinstance(error, ApiError):
        return error.as_response()
    status, detail = 500, "the server failed; its log says why"
    if isinstance(error, RungError):
        status, detail = 400, str(error)
    if isinstance(error, HTTPException):
        status, detail = error.status_code, error.detail
    refusal = ApiError(status, str(detail)).as_response()
    refusal.headers.update(getattr(error, "headers", None) or {})
    return refusal
