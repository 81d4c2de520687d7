"""What a server takes on and what it refuses, before anything is done for a request; and what it
counts.
"""

import asyncio
import hmac
import json
import logging
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rung.errors import RecipeError, RungError

logger = logging.getLogger(__name__)

LOCKED = (
    "/v1/",
    "/api/",
    "/metrics",
)  # what an API key opens; the page itself, and /health, are for all
HARMLESS = ("GET", "HEAD", "OPTIONS")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ARRIVED = "rung.arrived"  # in a request's scope
FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes on at most; and whom it answers."""

    max_batch: int = 16  # texts that a model continues together
    max_queue: int = 64  # texts that wait for that
    max_body_bytes: int = 1_000_000
    max_prompt_tokens: int = 8192
    max_tokens: int = 4096  # of an answer
    max_choices: int = 8  # answers to one prompt
    seconds: float = 300.0  # for an answer, waiting included
    body_seconds: float = 30.0  # for a request to arrive
    api_key: str | None = None  # none is asked for
    hosts: tuple[str, ...] = ()  # the names that it answers to: any
    origins: tuple[
        str, ...
    ] = ()  # pages of other servers that may ask, as https://example.org; * for all

    def __post_init__(self) -> None:
        for name in (
            "max_batch",
            "max_body_bytes",
            "max_prompt_tokens",
            "max_tokens",
            "max_choices",
            "seconds",
        ):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{name} is {getattr(self, name)}: it must be more than 0")
        if self.max_queue < 0:
            raise RecipeError(f"max_queue is {self.max_queue}: it must be 0 or more")
        if self.api_key is not None and self.api_key != read_key(self.api_key):
            raise RecipeError(
                "api_key begins or ends with white space, which no header can: strip it"
            )


class ApiError(HTTPException):
    """A refusal, in the form that OpenAI's clients read."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(status)
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def as_dict(self) -> dict[str, dict[str, str | None]]:
        """The body of the answer."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error"
        )
        return {
            "error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        }

    def as_response(self) -> Response:
        """The answer."""
        return Response(
            json.dumps(self.as_dict()),
            self.status_code,
            self.headers,
            media_type="application/json",
        )


def note_failure(model: str, error: Exception) -> ApiError:
    """The refusal of a text in whose turn something went wrong, which the log tells; what a line
    can tell is in it.
    """
    is_told = isinstance(error, RungError)
    logger.error("%s: a text failed: %s", model, error, exc_info=None if is_told else error)
    return ApiError(
        500, str(error) if is_told else "the model failed; the server's log says why", code="failed"
    )


def look_up(served: Mapping[str, T], name: str) -> T:
    """What is served by that name; raises `ApiError`."""
    if name not in served:
        known = ", ".join(served)[:1000]
        raise ApiError(
            404,
            f"there is no model {name[:100]!r}: choose from {known}",
            "model",
            "model_not_found",
        )
    return served[name]


def check_ids(ids: Sequence[int], size: int, param: str) -> None:
    """Raise `ApiError` for a token that a model of `size` rows does not have: its tokenizer may
    know more.
    """
    if wrong := [id for id in ids if not 0 <= id < size]:
        raise ApiError(
            400,
            f"{param}: the token {wrong[0]} is none of this model's, which are 0 to {size - 1}",
            param,
        )


def explain_body(error: RequestValidationError, content_type: str) -> ApiError:
    """What is wrong with a body: its first fault, and where that is. Of what may be a value or a
    list of them, the fault lies within the list, where one is given.
    """
    faults = error.errors()
    first, body = faults[0], error.body
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']} at {first['loc'][-1]}")
    if len(first["loc"]) == 1:
        if "json" not in content_type.lower():
            return ApiError(
                400, "the body is not said to be JSON: send it as Content-Type: application/json"
            )
        return ApiError(400, "the body is no JSON object: send {...} with the request's keys")
    places = [find_place(fault, body) for fault in faults]
    where = max((place for place in places if place[0] == places[0][0]), key=len)
    whys = dict.fromkeys(
        fault["msg"] for fault, place in zip(faults, places, strict=True) if place == where
    )
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else None
    named = where[0] + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part[:100]}" for part in where[1:]
    )
    return ApiError(400, f"{named}: {', or: '.join(whys)}"[:1000], where[0][:100], code)


def find_place(fault: Mapping[str, Any], body: Any) -> list[Any]:
    """The keys that lead to a fault: what pydantic says beside them is of no use to a client."""
    place: list[Any] = []
    for part in fault["loc"][1:]:
        if isinstance(body, dict | list) and part in (
            body if isinstance(body, dict) else range(len(body))
        ):
            place.append(part)
            body = body[part]
    return [*place, fault["loc"][-1]] if fault["type"] == "missing" or not place else place


class Metrics:
    """What /metrics shows of one app."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "rung_requests", "Requests answered.", ["endpoint", "status"], registry=registry
        )
        self.tokens = Counter(
            "rung_tokens", "Tokens read and written.", ["model", "kind"], registry=registry
        )
        self.waiting = Gauge(
            "rung_waiting_texts", "Texts that wait for a slot.", ["model"], registry=registry
        )
        self.running = Gauge(
            "rung_running_texts", "Texts that are being continued.", ["model"], registry=registry
        )
        self.first_token = Histogram(
            "rung_first_token_seconds",
            "From a request's arrival to the first token of its answer.",
            ["model"],
            buckets=FIRST_TOKEN_SECONDS,
            registry=registry,
        )


def find_arrival(scope: Scope) -> float:
    """When a request arrived, by the monotonic clock: as soon as its headers were there."""
    return float(scope.get(ARRIVED) or time.monotonic())


class Guard:
    """Stands before the app: counts requests, and refuses those of other hosts, other pages,
    without the key, or of a body that is too large or too slow. No more of a body is held than the
    limit.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope, send = number_answer(scope, send)
        scope[ARRIVED] = time.monotonic()
        status, has_begun = 500, False

        async def note(message: Message) -> None:
            nonlocal status, has_begun
            has_begun = True
            status = message.get("status", status)
            await send(message)

        try:
            check_sender(scope, self.limits)
            await self.app(scope, bound_body(receive, self.limits), note)
        except ApiError as error:
            await error.as_response()(scope, receive, note)
        except asyncio.CancelledError:  # the server ends: nothing else cancels a request
            if not has_begun:
                ending = ApiError(503, "the server is shutting down", code="shutting_down")
                await ending.as_response()(scope, receive, note)
        finally:
            endpoint = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(endpoint, str(status)).inc()


def number_answer(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """Give the answer a number, `x-request-id`; and make of HEAD a GET whose body is left out."""
    number, is_head = f"req_{uuid.uuid4().hex}", scope["method"] == "HEAD"

    async def send_numbered(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["x-request-id"] = number
        elif is_head:
            message = {**message, "body": b""}
        await send(message)

    return {**scope, "method": "GET" if is_head else scope["method"]}, send_numbered


def check_sender(scope: Scope, limits: Limits) -> None:
    """Raise `ApiError` for a request that this server is not to answer."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if limits.hosts and host_of(f"//{host}") not in limits.hosts:
        raise ApiError(
            403,
            "this server does not answer to that host name; see --allow-host",
            code="foreign_host",
        )
    origin = headers.get("origin")
    is_known = (
        not origin
        or "*" in limits.origins
        or origin in limits.origins
        or origin.split("://")[-1] == host
    )
    if scope["method"] not in HARMLESS and not is_known:
        raise ApiError(
            403,
            "a page of another server may not ask this one; see --allow-origin",
            code="foreign_origin",
        )
    if limits.api_key is not None and scope["path"].startswith(LOCKED):
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
        raise too_large(limits)


def host_of(address: str) -> str | None:
    """The host's name without its port, an address in its shortest form; None where there is none
    to be read.
    """
    try:
        name = urlsplit(address).hostname
    except ValueError:
        return None
    try:
        found = ip_address(name or "")
    except ValueError:
        return name
    return str(getattr(found, "ipv4_mapped", None) or found)


def find_hosts(host: str, allowed: Sequence[str] = ()) -> tuple[str, ...]:
    """The names by which a server there is to be asked, `allowed` ones among them: on this machine
    alone its own, so that no page elsewhere can have its name point here; else any, unless some are
    allowed.
    """
    own = host_of(f"//[{host}]" if ":" in host else f"//{host}") or host
    more = [host_of(f"//{name}") or name.lower() for name in allowed]
    if "*" in allowed or not (more or is_loopback(host)):
        return ()
    return tuple(dict.fromkeys([*LOOPBACK, own, *more]))


def is_loopback(host: str) -> bool:
    """Whether that name or address, however it is written, is this machine alone."""
    try:
        found = (
            {ip_address(place[4][0]) for place in socket.getaddrinfo(host, None)} if host else set()
        )
    except (OSError, ValueError):
        return False
    return bool(found) and all((getattr(ip, "ipv4_mapped", None) or ip).is_loopback for ip in found)


def read_key(given: str | None) -> str | None:
    """An API key as clients can send it; None asks for none.

    Raises `RecipeError` for one that is empty, as of a variable that is not set, or that no header
    can hold.
    """
    if given is None:
        return None
    if not given.strip():
        raise RecipeError(
            "the API key is empty: give one, or leave --api-key and RUNG_API_KEY out to serve "
            "without"
        )
    if not given.strip().isprintable():
        raise RecipeError(
            "the API key holds a line break or another control character: no client can send it"
        )
    return given.strip()


def read_origin(given: str) -> str:
    """A page's origin as browsers send it: https://Example.org:443/ is https://example.org; * is
    every one.

    Raises `RecipeError` where it is none.
    """
    if given in ("*", "null"):
        return given
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if (
        not parts.hostname
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
        or parts.username
    ):
        raise RecipeError(
            f"{given!r} is no origin: give scheme and host, as https://example.org, or * for all"
        )
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    ending = (
        "" if port is None or (parts.scheme, port) in (("http", 80), ("https", 443)) else f":{port}"
    )
    return f"{parts.scheme}://{name}{ending}"


def too_large(limits: Limits) -> ApiError:
    """The refusal of a body."""
    return ApiError(
        413, f"the request is larger than {limits.max_body_bytes:,} bytes", code="request_too_large"
    )


def bound_body(receive: Receive, limits: Limits) -> Receive:
    """`receive`, until the body is larger than it may be or takes too long; afterwards it waits for
    the client.
    """
    size, whole, latest = 0, False, time.monotonic() + limits.body_seconds

    async def read() -> Message:
        nonlocal size, whole
        if whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, latest - time.monotonic()))
        except TimeoutError:
            raise ApiError(
                408, f"the request did not arrive in {limits.body_seconds:g} seconds"
            ) from None
        size += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if size > limits.max_body_bytes:
            raise too_large(limits)
        return message

    return read
