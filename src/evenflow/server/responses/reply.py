"""Response objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenflow.server.responses.request import ResponsesRequest


def response_object(
    request: ResponsesRequest, completion: Mapping[str, Any], response_id: str
) -> dict[str, Any]:
    """Return a chat completion as the response object of its request."""
    choice = completion["choices"][0]
    message = choice["message"]
    calls = message.get("tool_calls") or []
    text = message.get("content") or ""
    output = []
    if text or not calls:
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        output.append(message_item(new_item_id("msg", response_id, 0), text, logprobs))
    for call in calls:
        output.append(call_item(new_item_id("fc", response_id, len(output)), call))
    if choice["finish_reason"] == "length":
        output[-1]["status"] = "incomplete"
    response = new_response(
        request, response_id, created=completion["created"], model=completion["model"]
    )
    return response | {"output": output} | ending(choice["finish_reason"], completion["usage"])


def new_response(
    request: ResponsesRequest, response_id: str, *, created: int, model: str
) -> dict[str, Any]:
    """Return the response object of a request whose answer has just begun."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "reasoning": {"effort": None, "summary": None},
        "usage": None,
        **request.fields,
    }


def ending(finish_reason: str, usage: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a response object that its end decides."""
    fields: dict[str, Any] = {"usage": usage and response_usage(usage)}
    match finish_reason:
        case "stop" | "tool_calls":
            fields["status"] = "completed"
        case "length":
            fields["status"] = "incomplete"
            fields["incomplete_details"] = {"reason": "max_output_tokens"}
        case _:
            fields["status"] = "failed"
            fields["error"] = failure(f"the generation ended early: {finish_reason}")
    return fields


def failure(message: str) -> dict[str, str]:
    """Return the `error` of a response that failed."""
    return {"code": "server_error", "message": message}


def response_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the token counts of a chat completion under the names of this API."""
    num_cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": num_cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }


def new_item_id(kind: str, response_id: str, output_index: int) -> str:
    """Return the id of an output item."""
    return f"{kind}_{response_id.removeprefix('resp_')}_{output_index}"


def text_part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    """Return the content part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def message_item(own_id: str, text: str, logprobs: list[Any]) -> dict[str, Any]:
    """Return the output item of the answer's text."""
    return {
        "id": own_id,
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [text_part(text, logprobs)],
    }


def call_item(own_id: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the output item of a chat message's call."""
    return {
        "id": own_id,
        "type": "function_call",
        "status": "completed",
        "call_id": call["id"],
        "name": call["function"]["name"],
        "arguments": call["function"]["arguments"],
    }
