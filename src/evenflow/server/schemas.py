"""The request bodies as the OpenAPI document shows them.

Bodies are read by our own code, which names the offending field and knows every rule; what stands
here is its description for people and for generators of clients and tests.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_TOKENS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _count(low: int, high: int | None = None) -> Schema:
    return {"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high})


_SAMPLING: Schema = {
    "model": _TEXT,
    "n": _count(1, 128),
    "max_tokens": _count(1),
    "min_tokens": _count(0),
    "temperature": _number(0, 100),
    "top_k": _count(-1),
    "top_p": _number(0, 1),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0.01, 100),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logit_bias": {"type": "object", "additionalProperties": _number(-100, 100)},
    "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    "stop_token_ids": _TOKENS,
    "include_stop_str_in_output": _FLAG,
    "ignore_eos": _FLAG,
    "skip_special_tokens": _FLAG,
    "seed": {"type": "integer"},
    "prompt_logprobs": _count(0, 20),
    "stream": _FLAG,
    "stream_options": {"type": "object", "properties": {"include_usage": _FLAG}},
    "response_format": {
        "type": "object",
        "properties": {
            "type": {"enum": ["text", "json_object", "json_schema"]},
            "json_schema": _OBJECT,
        },
        "required": ["type"],
    },
    "structured_outputs": _OBJECT,
    "priority": {
        "anyOf": [{"type": "integer"}, {"enum": ["interactive", "standard", "batch"]}],
        "description": "Lower is earlier.",
    },
    "cache_salt": _TEXT,
    "session_id": _TEXT,
    "user": {**_TEXT, "description": "Names the tenant when the key does not."},
}

_MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [_TEXT, {"type": "array", "items": _OBJECT}, {"type": "null"}]},
    },
    "required": ["role"],
}

SCHEMAS: dict[str, Schema] = {
    "ChatCompletionRequest": {
        "properties": {
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            **_SAMPLING,
            "max_completion_tokens": _count(1),
            "logprobs": _FLAG,
            "top_logprobs": _count(0, 20),
            "tools": {"type": "array", "items": _OBJECT},
            "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, _OBJECT]},
            "parallel_tool_calls": _FLAG,
            "chat_template_kwargs": _OBJECT,
        },
        "required": ["messages"],
    },
    "CompletionRequest": {
        "properties": {
            "prompt": {
                "anyOf": [
                    _TEXT,
                    _TOKENS,
                    {"type": "array", "items": _TEXT},
                    {"type": "array", "items": _TOKENS},
                ]
            },
            **_SAMPLING,
            "echo": _FLAG,
            "logprobs": _count(0, 20),
        },
        "required": ["prompt"],
    },
    "EmbeddingRequest": {
        "properties": {
            "input": {"anyOf": [_TEXT, _TOKENS, {"type": "array", "items": _TEXT}]},
            "model": _TEXT,
            "encoding_format": {"enum": ["float", "base64"]},
            "dimensions": _count(1),
            "normalize": _FLAG,
            "user": _TEXT,
        },
        "required": ["input"],
    },
    "TokenizeRequest": {
        "properties": {
            "prompt": _TEXT,
            "messages": {"type": "array", "items": _MESSAGE},
            "tools": {"type": "array", "items": _OBJECT},
            "add_special_tokens": _FLAG,
            "model": _TEXT,
        }
    },
    "DetokenizeRequest": {
        "properties": {"tokens": _TOKENS, "model": _TEXT},
        "required": ["tokens"],
    },
    "AbortRequest": {"properties": {"request_id": _TEXT, "all": _FLAG}},
    "SessionRequest": {
        "properties": {"session_id": _TEXT, "tenant": _TEXT, "ttl_s": _number(0, 86400)}
    },
    "PinRequest": {"properties": {"tenant": _TEXT, "ttl_s": _number(0, 86400)}},
    "BatchRequest": {
        "properties": {
            "input_file_id": _TEXT,
            "endpoint": {"enum": ["/v1/chat/completions", "/v1/completions"]},
            "completion_window": {"enum": ["24h"]},
            "metadata": {"type": "object", "additionalProperties": _TEXT},
        },
        "required": ["input_file_id", "endpoint"],
    },
    "ResponsesRequest": {
        "properties": {
            "input": {"anyOf": [_TEXT, {"type": "array", "items": _OBJECT}]},
            "model": _TEXT,
            "instructions": _TEXT,
            "max_output_tokens": _count(1),
            "previous_response_id": _TEXT,
            "store": _FLAG,
            "stream": _FLAG,
            "temperature": _number(0, 2),
            "text": _OBJECT,
            "tools": {"type": "array", "items": _OBJECT},
            "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, _OBJECT]},
            "top_p": _number(0, 1),
        },
        "required": ["input"],
    },
    "MessagesRequest": {
        "properties": {
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            "model": _TEXT,
            "max_tokens": _count(1),
            "system": {"anyOf": [_TEXT, {"type": "array", "items": _OBJECT}]},
            "stop_sequences": {"type": "array", "items": _TEXT},
            "stream": _FLAG,
            "temperature": _number(0, 1),
            "tools": {"type": "array", "items": _OBJECT},
            "tool_choice": _OBJECT,
            "top_k": _count(1),
            "top_p": _number(0, 1),
        },
        "required": ["messages", "max_tokens"],
    },
    "CountTokensRequest": {
        "properties": {
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            "model": _TEXT,
            "system": {"anyOf": [_TEXT, {"type": "array", "items": _OBJECT}]},
            "tools": {"type": "array", "items": _OBJECT},
            "tool_choice": _OBJECT,
        },
        "required": ["messages"],
    },
}


def json_body(name: str) -> Schema:
    """Return what a route says of its body in the OpenAPI document."""
    schema = {"type": "object", **SCHEMAS[name]}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": "required" in schema, "content": content}}
