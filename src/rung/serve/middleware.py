"""The ASGI middleware that counts requests, and refuses some before the app sees them."""

import asyncio
import hmac
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rung.serve.access import parse_host
from rung.serve.api_errors import ApiError
from rung.serve.limits import Limits
from rung.serve.metrics import Metrics

# Paths that need the API key. The page itself and /health are open to all.
KEYED_PATHS = ("/v1/", "/api/", "/metrics")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
ARRIVAL_KEY = "rung.arrived"  # in a request's scope


class AdmissionMiddleware:
    """Counts requests, and refuses those from other hosts or pages and those without the API key.

    It also refuses a body that is too large or comes too slowly; no more of a body is held in
    memory than the limit.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, as an ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope, send = add_request_id(scope, send)
        scope[ARRIVAL_KEY] = time.monotonic()
        status, has_begun = 500, False

        async def send_and_note(message: Message) -> None:
            nonlocal status, has_begun
            has_begun = True
            status = message.get("status", status)
            await send(message)

        try:
            check_request(scope, self.limits)
            await self.app(scope, limit_body(receive, self.limits), send_and_note)
        except ApiError as error:
            await error.as_response()(scope, receive, send_and_note)
        except asyncio.CancelledError:
            # Only the end of the server cancels a request.
            if not has_begun:
                ending = ApiError(503, "the server is shutting down", code="shutting_down")
                await ending.as_response()(scope, receive, send_and_note)
        finally:
            endpoint = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(endpoint, str(status)).inc()


def find_arrival(scope: Scope) -> float:
    """Return when a request's headers had arrived, by the monotonic clock."""
    return float(scope.get(ARRIVAL_KEY) or time.monotonic())


def add_request_id(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """Give the response an `x-request-id`, and answer HEAD as a GET without its body."""
    request_id, is_head = f"req_{uuid.uuid4().hex}", scope["method"] == "HEAD"

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["x-request-id"] = request_id
        elif is_head:
            message = {**message, "body": b""}
        await send(message)

    return {**scope, "method": "GET" if is_head else scope["method"]}, send_with_id


def check_request(scope: Scope, limits: Limits) -> None:
    """Raise `ApiError` for a request that the limits do not allow, by its headers."""
    headers = Headers(scope=scope)
    check_sender(scope, headers, limits)
    if limits.api_key is not None and scope["path"].startswith(KEYED_PATHS):
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), limits.api_key.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise ApiError(
                401,
                "the API key is missing or wrong: Authorization: Bearer KEY",
                code="invalid_api_key",
            )
    size = headers.get("content-length", "0")
    if not size.isdecimal() or int(size[:20]) > limits.max_body_bytes:
        raise body_too_large(limits)


def check_sender(scope: Scope, headers: Headers, limits: Limits) -> None:
    """Raise `ApiError` for a host name or a page's origin that is not allowed."""
    host = headers.get("host", "")
    if limits.hosts and parse_host(f"//{host}") not in limits.hosts:
        raise ApiError(
            403,
            "this server does not answer to that host name; see --allow-host",
            code="foreign_host",
        )
    origin = headers.get("origin")
    is_allowed = (
        not origin
        or "*" in limits.origins
        or origin in limits.origins
        or origin.split("://")[-1] == host
    )
    if scope["method"] not in SAFE_METHODS and not is_allowed:
        raise ApiError(
            403,
            "a page of another server may not ask this one; see --allow-origin",
            code="foreign_origin",
        )


def body_too_large(limits: Limits) -> ApiError:
    """Make the error of a body that is too large."""
    return ApiError(
        413, f"the request is larger than {limits.max_body_bytes:,} bytes", code="request_too_large"
    )


def limit_body(receive: Receive, limits: Limits) -> Receive:
    """Wrap `receive` so that it raises `ApiError` for a body that is too large or too slow.

    Once the body is there, the wrapper waits for the client without limit.
    """
    size, is_whole, deadline = 0, False, time.monotonic() + limits.body_seconds

    async def receive_limited() -> Message:
        nonlocal size, is_whole
        if is_whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise ApiError(
                408, f"the request did not arrive in {limits.body_seconds:g} seconds"
            ) from None
        size += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        if size > limits.max_body_bytes:
            raise body_too_large(limits)
        return message

    return receive_limited
