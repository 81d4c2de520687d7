"""The server's app: OpenAI's API and the playground for the served runs, in one process.

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
    from rung.serve.access import find_allowed_hosts, parse_api_key, parse_origin
    from rung.serve.api_errors import ApiError, explain_validation_error
    from rung.serve.engine import Engine
    from rung.serve.limits import Limits
    from rung.serve.metrics import Metrics
    from rung.serve.middleware import AdmissionMiddleware
    from rung.serve.server import Server, raise_descriptor_limit
    from rung.serve.worker import Worker, reserve_core
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
    "find_allowed_hosts",
    "load_served_models",
    "open_port",
    "parse_api_key",
    "parse_origin",
    "reserve_core",
    "run_server",
]

NO_LIMITS = Limits()


def build_app(served: dict[str, ServedModel], limits: Limits = NO_LIMITS) -> FastAPI:
    """Build the ASGI application of these runs; its worker runs from startup to shutdown."""
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
    add_monitoring(app, worker, metrics)
    app.add_exception_handler(RequestValidationError, explain_error)
    app.add_exception_handler(HTTPException, explain_error)
    app.add_exception_handler(RungError, explain_error)
    app.add_exception_handler(Exception, explain_error)
    app.add_middleware(AdmissionMiddleware, limits=limits, metrics=metrics)
    if limits.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(limits.origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )
    return app


def open_port(host: str, port: int) -> socket.socket:
    """Open a socket that listens there; port 0 takes any free port.

    Raises `RunError` where that is not possible.
    """
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    # A host name that is too long raises UnicodeError.
    except (OSError, UnicodeError) as error:
        why = (getattr(error, "strerror", None) or str(error)).split(" (while")[0]
        raise RunError(
            f"cannot listen at {host}, port {port} ({why}): choose others with --host and --port"
        ) from error
    # Connections inherit it. asyncio sets it only where the socket names its protocol, and without
    # it the second piece of an answer waits 40 ms for the client to acknowledge the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def run_server(served: dict[str, ServedModel], limits: Limits, listener: socket.socket) -> None:
    """Serve until Ctrl-C, which gives answers a moment to finish; a second Ctrl-C gives none."""
    raise_descriptor_limit()
    app = build_app(served, limits)
    Server(app, app.state.worker, limits.seconds).run(sockets=[listener])


def add_monitoring(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    """Add `/health` and `/metrics`."""

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say whether the models are at work."""
        if not worker.is_working:
            raise ApiError(503, "the models are not at work", code="not_working")
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        """Show counts and times, as Prometheus reads them."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def explain_error(request: Request, error: Exception) -> Response:
    """Turn any error into an error response in OpenAI's form."""
    if isinstance(error, RequestValidationError):
        error = explain_validation_error(error, request.headers.get("content-type", ""))
    if isinstance(error, ApiError):
        return error.as_response()
    status, detail = 500, "the server failed; its log says why"
    if isinstance(error, RungError):
        status, detail = 400, str(error)
    if isinstance(error, HTTPException):
        status, detail = error.status_code, error.detail
    response = ApiError(status, str(detail)).as_response()
    response.headers.update(getattr(error, "headers", None) or {})
    return response
