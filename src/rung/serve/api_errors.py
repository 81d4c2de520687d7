"""Error responses, in the form that OpenAI's clients read."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel

from rung.errors import RungError

logger = logging.getLogger(__name__)

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}  # of other statuses invalid_request_error, or server_error from 500 on
ERROR_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}

T = TypeVar("T")


class ErrorObject(BaseModel):
    """What is wrong with a request, or went wrong with it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of any response with status 400 or above."""

    error: ErrorObject


# The responses that every endpoint may give, for `/openapi.json`.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse},
    "5XX": {"model": ErrorResponse},
}


class ApiError(HTTPException):
    """Ends a request with an error response. `param` is the key of the request that is at fault."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(status, message, ERROR_HEADERS.get(status))
        self.param, self.code = param, code

    def to_json(self) -> str:
        """Write the body of the response."""
        default = "invalid_request_error" if self.status_code < 500 else "server_error"
        # Not validated, and written as ASCII: a key of the request may hold half a character.
        error = ErrorObject.model_construct(
            message=self.detail,
            type=ERROR_TYPES.get(self.status_code, default),
            param=self.param,
            code=self.code,
        )
        return json.dumps(ErrorResponse(error=error).model_dump())

    def as_response(self) -> Response:
        """Make the whole response."""
        return Response(
            self.to_json(), self.status_code, self.headers, media_type="application/json"
        )


def log_failure(model: str, error: Exception) -> ApiError:
    """Log an error that ended a text, and make the response for it.

    The message of a `RungError` is for users; of any other error only the log tells.
    """
    is_public = isinstance(error, RungError)
    logger.error("%s: a text failed: %s", model, error, exc_info=None if is_public else error)
    message = str(error) if is_public else "the model failed; the server's log says why"
    return ApiError(500, message, code="failed")


def find_model(models: Mapping[str, T], name: str) -> T:
    """Look up what is served by that name. Raises `ApiError` (404) for an unknown one."""
    if name not in models:
        known = ", ".join(models)[:1000]
        raise ApiError(
            404,
            f"there is no model {name[:100]!r}: choose from {known}",
            "model",
            "model_not_found",
        )
    return models[name]


def check_token_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raise `ApiError` for a token id that the model does not have.

    Its tokenizer may know more tokens than the model has rows.
    """
    if unknown := [id for id in ids if not 0 <= id < vocab_size]:
        raise ApiError(
            400,
            f"{param}: the token {unknown[0]} is none of this model's, which are 0 to "
            f"{vocab_size - 1}",
            param,
        )


def explain_validation_error(error: RequestValidationError, content_type: str) -> ApiError:
    """Say what is wrong with a request's body, by its first error and where that lies.

    Of a key that takes a value or a list of them, the error lies within the list if one is given.
    """
    errors = error.errors()
    first, body = errors[0], error.body
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']} at {first['loc'][-1]}")
    if len(first["loc"]) == 1:
        if "json" not in content_type.lower():
            return ApiError(
                400, "the body is not said to be JSON: send it as Content-Type: application/json"
            )
        return ApiError(400, "the body is no JSON object: send {...} with the request's keys")
    paths = [find_error_path(each, body) for each in errors]
    path = max((other for other in paths if other[0] == paths[0][0]), key=len)
    messages = dict.fromkeys(
        each["msg"] for each, other in zip(errors, paths, strict=True) if other == path
    )
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else None
    where = path[0] + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part[:100]}" for part in path[1:]
    )
    return ApiError(400, f"{where}: {', or: '.join(messages)}"[:1000], path[0][:100], code)


def find_error_path(error: Mapping[str, Any], body: Any) -> list[Any]:
    """Find the keys of the body that lead to a validation error.

    Pydantic's `loc` also names types of a union, which are of no use to a client.
    """
    path: list[Any] = []
    for part in error["loc"][1:]:
        keys = range(len(body)) if isinstance(body, list) else body
        if isinstance(body, dict | list) and part in keys:
            path.append(part)
            body = body[part]
    return [*path, error["loc"][-1]] if error["type"] == "missing" or not path else path
