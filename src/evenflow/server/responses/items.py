"""Items of input and output, as messages of a chat."""

from __future__ import annotations

from typing import Any

from evenflow.server.fields import objects, optional, required, shown, wrong

_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


def to_messages(items: list[Any], param: str) -> list[dict[str, Any]]:
    """Turn items into chat messages; calls join the assistant's message they follow.

    Raises:
        InvalidRequestError: an item is malformed or of a kind that text models have no use for.
    """
    messages: list[dict[str, Any]] = []
    for place, item in objects(items, param):
        match item.get("type", "message" if "role" in item else None):
            case "message":
                messages.append(_message(item, place))
            case "function_call":
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                messages[-1].setdefault("tool_calls", []).append(_call(item, place))
            case "function_call_output":
                messages.append(_result(item, place))
            case kind:
                raise wrong(
                    f"{place}.type",
                    "is not supported",
                    f"it is {shown(kind)}",
                    "Send items of type message, function_call or function_call_output",
                )
    return messages


def _message(item: dict[str, Any], place: str) -> dict[str, Any]:
    role = required(item, "role", str, f"{place}.")
    if role not in _ROLES:
        raise wrong(f"{place}.role", "is unknown", f"it is not one of {', '.join(_ROLES)}")
    return {"role": _ROLES[role], "content": _text(item, "content", place)}


def _call(item: dict[str, Any], place: str) -> dict[str, Any]:
    name, arguments, call_id = (
        required(item, field, str, f"{place}.") for field in ("name", "arguments", "call_id")
    )
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _result(item: dict[str, Any], place: str) -> dict[str, Any]:
    call_id = required(item, "call_id", str, f"{place}.")
    return {"role": "tool", "tool_call_id": call_id, "content": _text(item, "output", place)}


def _text(item: dict[str, Any], field: str, place: str) -> str:
    value = item.get(field)
    if isinstance(value, str):
        return value
    parts = required(item, field, list, f"{place}.")
    return "\n".join(_part(part, at) for at, part in objects(parts, f"{place}.{field}"))


def _part(part: dict[str, Any], place: str) -> str:
    kind = optional(part, "type", str, f"{place}.")
    if kind not in _TEXT_PARTS:
        raise wrong(
            f"{place}.type", "is not text", f"it is {shown(kind)}; evenflow serves text models"
        )
    return required(part, _TEXT_PARTS[kind], str, f"{place}.")
