"""Errors that only HTTP has, and the status code of every error."""

from __future__ import annotations

import math
from typing import Any

from fastapi.responses import JSONResponse

from evenflow.core.errors import EvenflowError, InvalidRequestError, RejectedError
from evenflow.engine.openai import error_body


class AuthenticationError(InvalidRequestError):
    """There is no key, or it is nobody's."""

    code = "invalid_api_key"


class PermissionDeniedError(InvalidRequestError):
    """The key is not good for this."""

    code = "permission_denied"


class NotFoundError(InvalidRequestError):
    """What the path names is not there."""

    code = "not_found"


class MethodNotAllowedError(InvalidRequestError):
    """The path is there, but not for this method."""

    code = "method_not_allowed"


class RequestTooLargeError(InvalidRequestError):
    """The body is larger than the server takes."""

    code = "request_too_large"


class HeadersTooLargeError(InvalidRequestError):
    """The request line and the headers are larger than the server takes."""

    code = "headers_too_large"


class TooManyConnectionsError(RejectedError):
    """As many connections are open as may be."""

    code = "too_many_connections"


class BodyTimeoutError(InvalidRequestError):
    """The request did not arrive in time."""

    code = "body_timeout"


STATUS_CODES = {
    "invalid_api_key": 401,
    "permission_denied": 403,
    "model_not_found": 404,
    "not_found": 404,
    "session_not_found": 404,
    "method_not_allowed": 405,
    "deadline_exceeded": 408,
    "body_timeout": 408,
    "duplicate_request_id": 409,
    "duplicate_session_id": 409,
    "pin_limit_exceeded": 409,
    "session_limit_exceeded": 409,
    "request_too_large": 413,
    "headers_too_large": 431,
    "queue_full": 429,
    "rate_limit_exceeded": 429,
    "draining": 503,
    "too_many_connections": 503,
    "request_aborted": 503,
    "engine_failed": 503,
}
"""By error code; other errors of the caller are 400, and ours 500."""


def status_code(error: EvenflowError) -> int:
    """Return the HTTP status of an error."""
    default = 400 if isinstance(error, InvalidRequestError) else 500
    return STATUS_CODES.get(error.code, default)


def error_headers(error: EvenflowError) -> dict[str, str]:
    """Return the headers that belong to an error."""
    if isinstance(error, RejectedError):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    if isinstance(error, AuthenticationError):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def error_response(error: EvenflowError, body: dict[str, Any] | None = None) -> JSONResponse:
    """Return an error as a response, in OpenAI's form unless `body` is given."""
    return JSONResponse(
        {"error": error_body(error)} if body is None else body,
        status_code=status_code(error),
        headers=error_headers(error),
    )
