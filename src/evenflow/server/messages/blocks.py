"""Messages of content blocks, as messages of a chat."""

from __future__ import annotations

import json
from typing import Any

from evenflow.server.fields import objects, optional, required, shown, wrong
from evenflow.tokenization.chat_template import plain_json

_KINDS = {
    "user": {"text", "tool_result"},
    "assistant": {"text", "tool_use", "thinking", "redacted_thinking"},
    "system": {"text"},
}


def to_messages(messages: list[Any], param: str) -> list[dict[str, Any]]:
    """Turn messages into chat messages; results of tools become messages of their own.

    Raises:
        InvalidRequestError: a message is malformed or holds something else than text and calls.
    """
    chat: list[dict[str, Any]] = []
    for place, message in objects(messages, param):
        role = required(message, "role", str, f"{place}.")
        if role not in _KINDS:
            raise wrong(f"{place}.role", "is unknown", f"it is not one of {', '.join(_KINDS)}")
        content = message.get("content")
        if isinstance(content, str):
            chat.append({"role": role, "content": content})
            continue
        blocks = list(objects(required(message, "content", list, f"{place}."), f"{place}.content"))
        for at, block in blocks:
            _check_kind(block, at, _KINDS[role])
        chat.extend(_assistant(blocks) if role == "assistant" else _others(role, blocks))
    return chat


def text_of(value: object, place: str) -> str:
    """Return the text of a string or of a list of text blocks.

    Raises:
        InvalidRequestError: it is something else.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(place, "must be a string or a list of blocks", f"it is {type(value).__name__}")
    blocks = list(objects(value, place))
    for at, block in blocks:
        _check_kind(block, at, {"text"})
    return _joined_text(blocks)


def _check_kind(block: dict[str, Any], place: str, kinds: set[str]) -> None:
    kind = optional(block, "type", str, f"{place}.")
    if kind not in kinds:
        raise wrong(
            f"{place}.type",
            "is not supported here",
            f"it is {shown(kind)}; evenflow serves text models",
            f"Send one of: {', '.join(sorted(kinds))}",
        )


def _joined_text(blocks: list[tuple[str, dict[str, Any]]]) -> str:
    return "\n".join(
        required(block, "text", str, f"{at}.") for at, block in blocks if block["type"] == "text"
    )


def _assistant(blocks: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Thinking is left out: it is another model's, signed by another server."""
    message: dict[str, Any] = {"role": "assistant", "content": _joined_text(blocks)}
    calls = [_call(block, at) for at, block in blocks if block["type"] == "tool_use"]
    return [message | {"tool_calls": calls} if calls else message]


def _others(role: str, blocks: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    chat = [_result(block, at) for at, block in blocks if block["type"] == "tool_result"]
    if len(chat) < len(blocks) or not blocks:
        chat.append({"role": role, "content": _joined_text(blocks)})
    return chat


def _call(block: dict[str, Any], place: str) -> dict[str, Any]:
    given = plain_json(required(block, "input", dict, f"{place}."), f"{place}.input")
    arguments = json.dumps(given, ensure_ascii=False)
    function = {"name": required(block, "name", str, f"{place}."), "arguments": arguments}
    call_id = required(block, "id", str, f"{place}.")
    return {"id": call_id, "type": "function", "function": function}


def _result(block: dict[str, Any], place: str) -> dict[str, Any]:
    text = text_of(block.get("content") or "", f"{place}.content")
    if optional(block, "is_error", bool, f"{place}."):
        text = f"Error: {text}"
    call_id = required(block, "tool_use_id", str, f"{place}.")
    return {"role": "tool", "tool_call_id": call_id, "content": text}
