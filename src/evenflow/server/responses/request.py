"""Bodies of `POST /v1/responses`, as chat bodies."""

from __future__ import annotations

from collections.abc import Callable
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
from evenflow.server.responses.items import to_messages
from evenflow.server.responses.store import StoredResponse

IGNORED = frozenset(
    {
        "max_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
    }
)
"""Fields that are accepted and have no effect."""

# By field, the values that ask for nothing we lack.
_ONLY: dict[str, tuple[object, ...]] = {
    "background": (False,),
    "reasoning": ({}, {"effort": None}, {"effort": "none"}),
    "truncation": ("disabled",),
}
_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = {_LOGPROBS, "reasoning.encrypted_content"}
_SAME = ENGINE_FIELDS | {"model", "parallel_tool_calls", "stream", "temperature", "top_p", "user"}
_KNOWN = (
    _SAME
    | IGNORED
    | _ONLY.keys()
    | {
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "metadata",
        "previous_response_id",
        "store",
        "stream_options",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)


@dataclass(slots=True, frozen=True, kw_only=True)
class ResponsesRequest:
    """A request, translated.

    Attributes:
        chat: the body for chat completions.
        conversation: the chat messages so far, without this request's instructions.
        fields: what the response object repeats of the request.
        is_stream: answer with events.
        is_stored: keep the response.
    """

    chat: dict[str, Any]
    conversation: list[dict[str, Any]]
    fields: dict[str, Any]
    is_stream: bool
    is_stored: bool

    def stored(self, response: dict[str, Any]) -> StoredResponse:
        """Return what is kept of this request and its response object."""
        answer = to_messages(response["output"], "output")
        return StoredResponse(response, [*self.conversation, *answer])


def parse_request(
    body: object, find_response: Callable[[str], StoredResponse | None]
) -> ResponsesRequest:
    """Translate a body.

    Args:
        body: the decoded JSON.
        find_response: looks up a stored response of the tenant by its id.

    Raises:
        InvalidRequestError: a field is unknown, missing, wrong or unsupported; `param` names it.
    """
    fields = known_fields(body, _KNOWN)
    for name, allowed in _ONLY.items():
        if name in fields and fields[name] not in allowed:
            raise wrong(name, "asks for something that is not supported", fix="Leave it out")
    conversation = _conversation(fields, find_response)
    instructions = optional(fields, "instructions", str)
    chat = {name: fields[name] for name in _SAME & fields.keys()}
    chat["messages"] = _with_instructions(conversation, instructions)
    if "max_output_tokens" in fields:
        chat["max_completion_tokens"] = positive(fields, "max_output_tokens")
    chat |= _tools(fields) | _response_format(fields) | _logprobs(fields)
    is_stream = optional(fields, "stream", bool) or False
    if is_stream:
        chat["stream_options"] = {"include_usage": True}
    stored = optional(fields, "store", bool)
    return ResponsesRequest(
        chat=chat,
        conversation=conversation,
        fields=_repeated(fields),
        is_stream=is_stream,
        is_stored=stored is not False,
    )


def _conversation(
    fields: dict[str, Any], find_response: Callable[[str], StoredResponse | None]
) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    previous_id = optional(fields, "previous_response_id", str)
    if previous_id is not None:
        previous = find_response(previous_id)
        if previous is None:
            raise wrong(
                "previous_response_id",
                "names no stored response",
                "it was never stored, was deleted, or has made room for newer ones",
                "Send the whole conversation as input",
            )
        messages.extend(previous.conversation)
    if isinstance(fields.get("input"), str):
        messages.append({"role": "user", "content": fields["input"]})
    else:
        messages.extend(to_messages(required(fields, "input", list), "input"))
    return messages


def _with_instructions(
    conversation: list[dict[str, Any]], instructions: str | None
) -> list[dict[str, Any]]:
    """Put instructions first, in one system message: most templates take no second one."""
    if instructions is None:
        return conversation
    texts, rest = [instructions], conversation
    while rest and rest[0]["role"] == "system":
        texts.append(rest[0]["content"])
        rest = rest[1:]
    return [{"role": "system", "content": "\n\n".join(texts)}, *rest]


def _tools(fields: dict[str, Any]) -> dict[str, Any]:
    chat: dict[str, Any] = {}
    tools = optional(fields, "tools", list)
    if tools:
        chat["tools"] = [_tool(tool, place) for place, tool in objects(tools, "tools")]
    choice = fields.get("tool_choice")
    match choice:
        case None:
            pass
        case {"type": "function", "name": name}:
            chat["tool_choice"] = {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": [*allowed]}:
            named = [_tool(tool, place) for place, tool in objects(allowed, "tool_choice.tools")]
            chat["tool_choice"] = {
                "type": "allowed_tools",
                "allowed_tools": {"mode": mode, "tools": named},
            }
        case str():
            chat["tool_choice"] = choice
        case _:
            raise wrong("tool_choice", "is not supported", "it names no function of tools")
    return chat


def _tool(tool: dict[str, Any], place: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise wrong(
            f"{place}.type", "is not supported", "only functions are; they run at the caller"
        )
    function = {
        name: tool[name]
        for name in ("name", "description", "parameters", "strict")
        if tool.get(name) is not None
    }
    return {"type": "function", "function": function}


def _response_format(fields: dict[str, Any]) -> dict[str, Any]:
    text = optional(fields, "text", dict) or {}
    if text.get("verbosity") not in (None, "medium"):
        raise wrong("text.verbosity", "is not supported", fix='Leave it out, or send "medium"')
    form = optional(text, "format", dict, "text.")
    if form is None or form.get("type") == "text":
        return {}
    if form.get("type") == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if form.get("type") != "json_object":
        kind = shown(form.get("type"))
        raise wrong("text.format.type", "is not supported", f"it is {kind}")
    return {"response_format": {"type": "json_object"}}


def _logprobs(fields: dict[str, Any]) -> dict[str, Any]:
    include = optional(fields, "include", list) or []
    for index, name in enumerate(include):
        if not isinstance(name, str) or name not in _INCLUDABLE:
            raise wrong(f"include[{index}]", "is not supported", f"it is {shown(name)}")
    num_top = optional(fields, "top_logprobs", int)
    if num_top is None and _LOGPROBS not in include:
        return {}
    return {"logprobs": True, "top_logprobs": num_top or 0}


def _repeated(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a response object has in common with its request."""
    defaults: dict[str, Any] = {
        "background": False,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }
    metadata = optional(fields, "metadata", dict) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise wrong("metadata", "must map names to strings")
    return {name: fields.get(name, default) for name, default in defaults.items()}
