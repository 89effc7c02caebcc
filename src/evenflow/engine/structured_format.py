"""Reads how OpenAI's and vLLM's request bodies ask for text of a prescribed form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from evenflow.core.errors import InvalidRequestError
from evenflow.core.structured import MAX_JSON_DEPTH, StructuredOutput, is_deeper_than

_RESPONSE_FORMAT = "response_format"
_STRUCTURED_OUTPUTS = "structured_outputs"
_KINDS = ("json", "json_object", "regex", "grammar", "choice")


def parse_structured(fields: Mapping[str, Any]) -> StructuredOutput | None:
    """Read `response_format` and `structured_outputs`.

    Raises:
        InvalidRequestError: one of them is wrong, or both ask for something.
    """
    asked = [
        _response_format(fields.get(_RESPONSE_FORMAT)),
        _structured_outputs(fields.get(_STRUCTURED_OUTPUTS)),
    ]
    if None not in asked:
        raise InvalidRequestError(
            f"{_RESPONSE_FORMAT} and {_STRUCTURED_OUTPUTS} both ask for a form of output",
            param=_STRUCTURED_OUTPUTS,
            fix="Send one of them",
        )
    return asked[0] or asked[1]


def _response_format(value: object) -> StructuredOutput | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _wrong(_RESPONSE_FORMAT, "it is not an object")
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return StructuredOutput("json_object", param=_RESPONSE_FORMAT)
        case "json_schema":
            described = value.get("json_schema")
            if not isinstance(described, Mapping) or "schema" not in described:
                raise _wrong(_RESPONSE_FORMAT, "json_schema must be an object with a schema")
            return _json_schema(described["schema"], _RESPONSE_FORMAT)
        case other:
            raise _wrong(
                _RESPONSE_FORMAT, f"its type is {other!r}, not text, json_object or json_schema"
            )


def _structured_outputs(value: object) -> StructuredOutput | None:
    if value is None:
        return None
    param = _STRUCTURED_OUTPUTS
    if not isinstance(value, Mapping):
        raise _wrong(param, "it is not an object")
    asked = {name: spec for name, spec in value.items() if spec is not None and spec is not False}
    if len(asked) != 1:
        raise _wrong(param, f"it must have exactly one of {', '.join(_KINDS)}, not {len(asked)}")
    [(name, spec)] = asked.items()
    if name not in _KINDS:
        raise _wrong(param, f"{name!r} is not one of {', '.join(_KINDS)}")
    match name:
        case "json_object":
            if spec is not True:
                raise _wrong(param, "json_object must be true or false")
            return StructuredOutput("json_object", param=param)
        case "json":
            return _json_schema(spec, param)
        case "choice":
            return StructuredOutput("choice", _as_json(spec, param), param)
        case _:
            return StructuredOutput(name, spec, param)


def _json_schema(schema: object, param: str) -> StructuredOutput:
    spec = schema if isinstance(schema, str) else _as_json(schema, param)
    return StructuredOutput("json_schema", spec, param)


def _as_json(value: object, param: str) -> str:
    if is_deeper_than(value, MAX_JSON_DEPTH):
        raise _wrong(param, f"it is nested more than {MAX_JSON_DEPTH} levels deep")
    return json.dumps(value)


def _wrong(param: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param} cannot be read", param=param, why=why)
