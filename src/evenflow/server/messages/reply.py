"""Messages and errors in Anthropic's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from evenflow.core.errors import EvenflowError
from evenflow.server.errors import status_code

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def message_object(completion: Mapping[str, Any], message_id: str) -> dict[str, Any]:
    """Return a chat completion as a message."""
    choice = completion["choices"][0]
    answer = choice["message"]
    content: list[dict[str, Any]] = []
    if answer.get("content"):
        content.append({"type": "text", "text": answer["content"]})
    for call in answer.get("tool_calls") or ():
        function = call["function"]
        content.append(tool_use(call["id"], function["name"], _input(function["arguments"])))
    message = new_message(message_id, completion["model"], usage(completion["usage"]))
    reason = stop_reason(choice["finish_reason"], choice.get("stop_reason"))
    return message | {"content": content} | reason


def new_message(message_id: str, model: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return a message without content."""
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": counts,
    }


def tool_use(call_id: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the block of a call."""
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def stop_reason(finish_reason: str | None, stop: object) -> dict[str, str | None]:
    """Return why a message ended.

    Args:
        finish_reason: a chat choice's.
        stop: the stop string that ended it, if one did.
    """
    if finish_reason == "stop" and isinstance(stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
    return {"stop_reason": reasons.get(finish_reason or "", "end_turn"), "stop_sequence": None}


def usage(counts: Mapping[str, Any]) -> dict[str, int]:
    """Return the token counts of a chat completion; here cached ones are no input tokens."""
    num_cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        "input_tokens": counts["prompt_tokens"] - num_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": num_cached,
        "output_tokens": counts["completion_tokens"],
    }


def error_body(error: EvenflowError) -> dict[str, Any]:
    """Return an error as the body of a response, or as the last event of a stream."""
    kind = _ERROR_TYPES.get(status_code(error), "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def _input(arguments: str) -> dict[str, Any]:
    """Return a call's arguments; none if the length limit cut them short."""
    try:
        parsed: dict[str, Any] = json.loads(arguments)
    except ValueError:
        return {}
    return parsed
