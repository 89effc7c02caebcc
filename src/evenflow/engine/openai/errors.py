"""Errors as OpenAI's body has them."""

from __future__ import annotations

from typing import Any

from evenflow.core.errors import EvenflowError, InvalidRequestError


def error_body(error: EvenflowError) -> dict[str, Any]:
    """Return what stands under "error" in a response."""
    is_callers = isinstance(error, InvalidRequestError)
    return {
        "message": str(error),
        "type": "invalid_request_error" if is_callers else "server_error",
        "param": error.param if isinstance(error, InvalidRequestError) else None,
        "code": error.code,
    }
