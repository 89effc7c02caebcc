"""Errors as OpenAI's body has them."""

from __future__ import annotations

from typing import Any

from evenflow.core.errors import (
    EvenflowError,
    InvalidRequestError,
    QueueFullError,
    RateLimitError,
)

_MAX_CHARS = 1000


def error_body(error: EvenflowError) -> dict[str, Any]:
    """Return what stands under "error" in a response."""
    match error:
        case InvalidRequestError():
            kind = "invalid_request_error"
        case QueueFullError() | RateLimitError():
            kind = "rate_limit_error"
        case _:
            kind = "server_error"
    param = error.param if isinstance(error, InvalidRequestError) else None
    return {
        "message": _shortened(str(error)),
        "type": kind,
        "param": _shortened(param) if param else None,
        "code": error.code,
    }


def _shortened(text: str) -> str:
    """Cut a text that quotes much of what was sent."""
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}..."
