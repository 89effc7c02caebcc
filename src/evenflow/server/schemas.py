"""The request bodies as the OpenAPI document shows them.

Bodies are read by our own code, which names the offending field and knows every rule; what stands
here is its description for people and for generators of clients and tests. Every field that is
accepted is here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from evenflow.engine import openai
from evenflow.server import messages, responses

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_SOME_TEXT: Schema = {"type": "string", "minLength": 1}
_FLAG: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_TOKENS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_SHARE: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _count(low: int, high: int | None = None) -> Schema:
    return {"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high})


def _one_of(*choices: str) -> Schema:
    return {"enum": list(choices)}


def _list(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items} | ({"minItems": least} if least else {})


def _record(required: Iterable[str] = (), /, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _body(*required: str, **properties: Schema) -> Schema:
    """Return a record that has no other properties than these."""
    return {**_record(required, **properties), "additionalProperties": False}


def _without_effect(names: Iterable[str]) -> dict[str, Schema]:
    return {name: {"description": "Accepted without effect."} for name in sorted(names)}


_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"}
_FUNCTION_PARTS: dict[str, Schema] = {
    "name": _NAME,
    "description": _TEXT,
    "parameters": _record(type={"const": "object"}),
    "strict": _FLAG,
}
_CHOSEN = _one_of("none", "auto", "required")
_TOOL = _record(
    ("type", "function"), type=_one_of("function"), function=_record(("name",), **_FUNCTION_PARTS)
)
_NAMED_TOOL = _record(
    ("type", "function"), type=_one_of("function"), function=_record(("name",), name=_NAME)
)
_PART = _record(("type", "text"), type=_one_of("text"), text=_TEXT)
_CONTENT: Schema = {"anyOf": [_TEXT, _list(_PART, 1)]}
_CALL = _record(
    ("id", "type", "function"),
    id=_TEXT,
    type=_one_of("function"),
    function=_record(
        ("name", "arguments"),
        name=_NAME,
        arguments={**_TEXT, "description": "A JSON object.", "examples": ["{}"]},
    ),
)
_MESSAGE: Schema = {
    "anyOf": [
        _body(
            "role",
            "content",
            role=_one_of("system", "developer", "user"),
            content=_CONTENT,
            name=_TEXT,
        ),
        _record(("role", "content"), role=_one_of("assistant"), content=_CONTENT),
        _record(
            ("role", "content", "tool_calls"),
            role=_one_of("assistant"),
            content={"anyOf": [_CONTENT, {"type": "null"}]},
            tool_calls=_list(_CALL, 1),
        ),
        _record(
            ("role", "content", "tool_call_id"),
            role=_one_of("tool"),
            content=_CONTENT,
            tool_call_id=_TEXT,
        ),
    ]
}
_SOME_TOKENS: Schema = {**_TOKENS, "minItems": 1}
_PROMPTS: Schema = {
    "anyOf": [_SOME_TEXT, _SOME_TOKENS, _list(_SOME_TEXT, 1), _list(_SOME_TOKENS, 1)]
}
_JSON_SCHEMA = _record(("schema",), name=_TEXT, schema=_OBJECT, strict=_FLAG)
_USER: Schema = {**_TEXT, "description": "Names the tenant when the key does not."}

# What the engine offers to every API.
_ENGINE: dict[str, Schema] = {
    "cache_salt": _TEXT,
    "chat_template_kwargs": _OBJECT,
    "frequency_penalty": _number(-2, 2),
    "ignore_eos": _FLAG,
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": _number(-100, 100),
    },
    "min_p": _number(0, 1),
    "min_tokens": _count(0),
    "presence_penalty": _number(-2, 2),
    "priority": {
        "anyOf": [{"type": "integer"}, _one_of("interactive", "standard", "batch")],
        "description": "Lower is earlier.",
    },
    "repetition_penalty": _number(0.01, 100),
    "seed": {"type": "integer"},
    "session_id": _SOME_TEXT,
    "stop_token_ids": _TOKENS,
    "top_k": _count(-1),
}
_SAMPLING: dict[str, Schema] = {
    **{name: schema for name, schema in _ENGINE.items() if name != "chat_template_kwargs"},
    "model": _TEXT,
    "n": _count(1, 128),
    "max_tokens": _count(1),
    "temperature": _number(0, 100),
    "top_p": _SHARE,
    "stop": {"anyOf": [_SOME_TEXT, _list(_SOME_TEXT)]},
    "include_stop_str_in_output": _FLAG,
    "skip_special_tokens": _FLAG,
    "prompt_logprobs": _count(0, 20),
    "stream": _FLAG,
    "stream_options": _body(include_usage=_FLAG),
    "response_format": {
        "anyOf": [
            _record(("type",), type=_one_of("text", "json_object")),
            _record(("type", "json_schema"), type=_one_of("json_schema"), json_schema=_JSON_SCHEMA),
        ]
    },
    "structured_outputs": {
        "anyOf": [
            _body("json", json=_OBJECT),
            _body("json_object", json_object={"const": True}),
            _body("regex", regex=_SOME_TEXT),
            _body("grammar", grammar=_SOME_TEXT),
            _body("choice", choice=_list(_SOME_TEXT, 1)),
        ]
    },
    **_without_effect(openai.IGNORED - {"user"}),
    "user": _USER,
}
_INPUT_ITEM: Schema = {
    "anyOf": [
        _record(
            ("role", "content"),
            type=_one_of("message"),
            role=_one_of("user", "assistant", "system", "developer"),
            content={
                "anyOf": [
                    _TEXT,
                    _list(_record(("type", "text"), type=_one_of("input_text"), text=_TEXT)),
                ]
            },
        ),
        _record(
            ("type", "call_id", "name", "arguments"),
            type=_one_of("function_call"),
            call_id=_TEXT,
            name=_NAME,
            arguments=_TEXT,
        ),
        _record(
            ("type", "call_id", "output"),
            type=_one_of("function_call_output"),
            call_id=_TEXT,
            output=_TEXT,
        ),
    ]
}
_BLOCK: Schema = {
    "anyOf": [
        _PART,
        _record(
            ("type", "id", "name", "input"),
            type=_one_of("tool_use"),
            id=_TEXT,
            name=_NAME,
            input=_OBJECT,
        ),
        _record(
            ("type", "tool_use_id"),
            type=_one_of("tool_result"),
            tool_use_id=_TEXT,
            content=_CONTENT,
            is_error=_FLAG,
        ),
    ]
}
_TURN = _record(
    ("role", "content"),
    role=_one_of("user", "assistant"),
    content={"anyOf": [_TEXT, _list(_BLOCK, 1)]},
)
_ANTHROPIC: dict[str, Schema] = {
    **_ENGINE,
    "messages": _list(_TURN, 1),
    "model": _TEXT,
    "max_tokens": _count(1),
    "metadata": _record(user_id=_USER),
    "output_config": _record(
        format=_record(("type", "schema"), type=_one_of("json_schema"), schema=_OBJECT)
    ),
    "stop_sequences": _list(_SOME_TEXT),
    "stream": _FLAG,
    "system": _CONTENT,
    "temperature": _number(0, 1),
    "thinking": _record(type=_one_of("disabled")),
    "tool_choice": {
        "anyOf": [
            _record(
                ("type",), type=_one_of("auto", "any", "none"), disable_parallel_tool_use=_FLAG
            ),
            _record(("type", "name"), type=_one_of("tool"), name=_NAME),
        ]
    },
    "tools": _list(
        _record(("name", "input_schema"), name=_NAME, description=_TEXT, input_schema=_OBJECT)
    ),
    "top_p": _SHARE,
    **_without_effect(messages.IGNORED),
}


SCHEMAS: dict[str, Schema] = {
    "ChatCompletionRequest": _body(
        "messages",
        messages=_list(_MESSAGE, 1),
        **_SAMPLING,
        max_completion_tokens=_count(1),
        logprobs=_FLAG,
        top_logprobs=_count(0, 20),
        tools=_list(_TOOL),
        tool_choice={"anyOf": [_CHOSEN, _NAMED_TOOL]},
        parallel_tool_calls=_FLAG,
        chat_template_kwargs=_OBJECT,
    ),
    "CompletionRequest": _body(
        "prompt",
        prompt=_PROMPTS,
        **_SAMPLING,
        echo=_FLAG,
        logprobs=_count(0, 20),
    ),
    "EmbeddingRequest": _body(
        "input",
        input=_PROMPTS,
        model=_TEXT,
        encoding_format=_one_of("float", "base64"),
        dimensions=_count(1),
        normalize=_FLAG,
        user=_USER,
    ),
    "TokenizeRequest": _body(
        prompt=_TEXT,
        messages=_list(_MESSAGE, 1),
        tools=_list(_TOOL),
        chat_template_kwargs=_OBJECT,
        add_special_tokens=_FLAG,
        model=_TEXT,
    ),
    "DetokenizeRequest": _body("tokens", tokens=_TOKENS, model=_TEXT),
    "AbortRequest": _body(request_id=_TEXT, all=_FLAG),
    "PriorityRequest": _body("priority", priority=_ENGINE["priority"]),
    "SessionRequest": _body(session_id=_TEXT, tenant=_TEXT, ttl_s=_number(0, 86400)),
    "PinRequest": _body(tenant=_TEXT, ttl_s=_number(0, 86400)),
    "BatchRequest": _body(
        "input_file_id",
        "endpoint",
        input_file_id=_TEXT,
        endpoint=_one_of(openai.CHAT, openai.COMPLETIONS),
        completion_window=_one_of("24h"),
        metadata={"type": "object", "additionalProperties": _TEXT},
    ),
    "ResponsesRequest": _body(
        "input",
        input={"anyOf": [_TEXT, _list(_INPUT_ITEM, 1)]},
        **_ENGINE,
        model=_TEXT,
        background={"const": False},
        include=_list(_one_of("message.output_text.logprobs", "reasoning.encrypted_content")),
        instructions=_TEXT,
        max_output_tokens=_count(1),
        metadata={"type": "object", "additionalProperties": _TEXT},
        parallel_tool_calls=_FLAG,
        previous_response_id=_TEXT,
        reasoning=_record(effort=_one_of("none")),
        store=_FLAG,
        stream=_FLAG,
        stream_options=_OBJECT,
        temperature=_number(0, 2),
        text=_record(
            format={
                "anyOf": [
                    _record(("type",), type=_one_of("text", "json_object")),
                    _record(
                        ("type", "name", "schema"),
                        type=_one_of("json_schema"),
                        name=_TEXT,
                        schema=_OBJECT,
                        strict=_FLAG,
                    ),
                ]
            },
            verbosity=_one_of("medium"),
        ),
        tool_choice={
            "anyOf": [_CHOSEN, _record(("type", "name"), type=_one_of("function"), name=_NAME)]
        },
        tools=_list(_record(("type", "name"), type=_one_of("function"), **_FUNCTION_PARTS)),
        top_logprobs=_count(0, 20),
        top_p=_SHARE,
        truncation=_one_of("disabled"),
        user=_USER,
        **_without_effect(responses.IGNORED),
    ),
    "MessagesRequest": _body("messages", "max_tokens", **_ANTHROPIC),
    "CountTokensRequest": _body("messages", **_ANTHROPIC),
}
"""By name, the schema of each body that is JSON."""


def json_body(name: str) -> Schema:
    """Return what a route says of its body in the OpenAPI document."""
    schema = SCHEMAS[name]
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": bool(schema["required"]), "content": content}}
