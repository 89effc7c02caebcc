"""What an answer with calls is made of, and OpenAI's shape of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, frozen=True)
class ContentDelta:
    """More text of the answer itself."""

    text: str


@dataclass(slots=True, frozen=True)
class ToolCallStarted:
    """A call begins; `index` counts the calls of the answer from 0."""

    index: int
    id: str
    name: str


@dataclass(slots=True, frozen=True)
class ArgumentsDelta:
    """More of a call's arguments, a JSON text."""

    index: int
    text: str


ToolCallEvent = ContentDelta | ToolCallStarted | ArgumentsDelta


def chat_delta(events: Iterable[ToolCallEvent]) -> dict[str, Any]:
    """Put events together as the `delta` of one streamed chat chunk; {} if there are none."""
    delta: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        match event:
            case ContentDelta(text):
                delta["content"] = delta.get("content", "") + text
            case ToolCallStarted(index, call_id, name):
                function = {"name": name, "arguments": ""}
                calls[index] = {"index": index, "id": call_id, "type": "function"}
                calls[index]["function"] = function
            case ArgumentsDelta(index, text):
                call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                call["function"]["arguments"] += text
    if calls:
        delta["tool_calls"] = list(calls.values())
    return delta


def assistant_message(events: Iterable[ToolCallEvent]) -> dict[str, Any]:
    """Put the events of a whole answer together as the message of a chat completion."""
    delta = chat_delta(events)
    calls = [
        {name: value for name, value in call.items() if name != "index"}
        for call in delta.get("tool_calls", ())
    ]
    if not calls:
        return {"role": "assistant", "content": delta.get("content", "")}
    return {"role": "assistant", "content": delta.get("content"), "tool_calls": calls}
