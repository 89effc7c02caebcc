"""Bodies of `POST /v1/messages` and `/v1/messages/count_tokens`, as chat bodies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evenflow.server.fields import (
    ENGINE_FIELDS,
    known_fields,
    objects,
    optional,
    positive,
    required,
    shown,
    wrong,
)
from evenflow.server.messages.blocks import text_of, to_messages

IGNORED = frozenset({"cache_control", "service_tier"})
"""Fields that are accepted and have no effect; prefixes are cached without being asked."""

_SAME = ENGINE_FIELDS | {"model", "stream", "temperature", "top_p"}
_KNOWN = (
    _SAME
    | IGNORED
    | {
        "max_tokens",
        "messages",
        "metadata",
        "output_config",
        "stop_sequences",
        "system",
        "thinking",
        "tool_choice",
        "tools",
    }
)


@dataclass(slots=True, frozen=True, kw_only=True)
class MessagesRequest:
    """A request, translated.

    Attributes:
        chat: the body for chat completions.
        is_stream: answer with events.
    """

    chat: dict[str, Any]
    is_stream: bool


def parse_request(body: object) -> MessagesRequest:
    """Translate a body.

    Raises:
        InvalidRequestError: a field is unknown, missing, wrong or unsupported; `param` names it.
    """
    fields = known_fields(body, _KNOWN)
    chat = _chat(fields)
    chat["max_completion_tokens"] = positive(fields, "max_tokens")
    is_stream = optional(fields, "stream", bool) or False
    if is_stream:
        chat["stream_options"] = {"include_usage": True}
    stop = optional(fields, "stop_sequences", list)
    if stop:
        if not all(isinstance(text, str) and text for text in stop):
            raise wrong("stop_sequences", "must hold non-empty strings")
        chat["stop"] = stop
    metadata = optional(fields, "metadata", dict) or {}
    user = optional(metadata, "user_id", str, "metadata.")
    if user is not None:
        chat["user"] = user
    return MessagesRequest(chat=chat, is_stream=is_stream)


def parse_count_request(body: object) -> dict[str, Any]:
    """Translate a body whose tokens are to be counted; return the chat body.

    Raises:
        InvalidRequestError: a field is unknown, missing, wrong or unsupported; `param` names it.
    """
    return _chat(known_fields(body, _KNOWN))


def _chat(fields: dict[str, Any]) -> dict[str, Any]:
    chat = {name: fields[name] for name in _SAME & fields.keys()}
    chat["messages"] = _messages(fields)
    thinking = optional(fields, "thinking", dict) or {}
    if thinking.get("type") not in (None, "disabled"):
        raise wrong("thinking", "is not supported", fix='Leave it out, or send type "disabled"')
    return chat | _tools(fields) | _tool_choice(fields) | _response_format(fields)


def _messages(fields: dict[str, Any]) -> list[dict[str, Any]]:
    messages = to_messages(required(fields, "messages", list), "messages")
    if messages and messages[-1]["role"] == "assistant":
        raise wrong(
            "messages",
            "must not end with the assistant's",
            "an answer that is begun by the caller cannot be continued",
        )
    if "system" not in fields:
        return messages
    return [{"role": "system", "content": text_of(fields["system"], "system")}, *messages]


def _tools(fields: dict[str, Any]) -> dict[str, Any]:
    tools = optional(fields, "tools", list)
    if not tools:
        return {}
    return {"tools": [_tool(tool, f"{place}.") for place, tool in objects(tools, "tools")]}


def _tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise wrong(
            f"{path}type",
            "is not supported",
            f"it is {shown(tool['type'])}",
            "Describe the tool by a name and an input_schema",
        )
    function = {
        "name": required(tool, "name", str, path),
        "description": optional(tool, "description", str, path),
        "parameters": required(tool, "input_schema", dict, path),
        "strict": optional(tool, "strict", bool, path),
    }
    present = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": present}


def _tool_choice(fields: dict[str, Any]) -> dict[str, Any]:
    choice = optional(fields, "tool_choice", dict)
    match choice:
        case None:
            return {}
        case {"type": "auto" | "none" as kind}:
            chat: dict[str, Any] = {"tool_choice": kind}
        case {"type": "any"}:
            chat = {"tool_choice": "required"}
        case {"type": "tool", "name": str(name)}:
            chat = {"tool_choice": {"type": "function", "function": {"name": name}}}
        case _:
            raise wrong("tool_choice", "must be of type auto, any, none, or tool with a name")
    if optional(choice, "disable_parallel_tool_use", bool, "tool_choice."):
        chat["parallel_tool_calls"] = False
    return chat


def _response_format(fields: dict[str, Any]) -> dict[str, Any]:
    """The effort that `output_config` may also ask for is for models that think."""
    config = optional(fields, "output_config", dict) or {}
    form = optional(config, "format", dict, "output_config.")
    if form is None:
        return {}
    if form.get("type") != "json_schema":
        raise wrong("output_config.format.type", 'must be "json_schema"')
    schema = required(form, "schema", dict, "output_config.format.")
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": schema, "strict": True},
        }
    }
