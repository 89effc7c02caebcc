from __future__ import annotations

import json
from typing import Any

import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.core.structured import MAX_JSON_DEPTH, StructuredOutput, is_deeper_than


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize("depth", [1, 5, MAX_JSON_DEPTH])
def test_is_deeper_than_counts_objects_and_arrays(depth: int) -> None:
    assert not is_deeper_than(nested(depth), depth)
    assert is_deeper_than(nested(depth), depth - 1)


def test_is_deeper_than_takes_a_plain_value_for_flat() -> None:
    assert not is_deeper_than("text", 0)


@pytest.mark.parametrize(
    ("kind", "spec", "why"),
    [
        ("xml", "", "no structured output of kind 'xml'"),
        ("regex", "", "is empty"),
        ("regex", 5, "is int, not a string"),
        ("regex", "a" * 16385, "16385 bytes; the limit is 16384"),
        ("regex", "é" * 8193, "16386 bytes"),
        ("regex", "\ud800", "surrogate"),
        ("grammar", "a" * 16385, "limit is 16384"),
        ("json_object", "{}", "limit is 0"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[]", "not a JSON object"),
        ("json_schema", json.dumps(nested(MAX_JSON_DEPTH + 1)), "more than 64 levels"),
        ("json_schema", "[" * 60000, "nested too deeply|not JSON"),
        ("json_schema", json.dumps({"enum": ["a" * 65536]}), "limit is 65536"),
        ("choice", "[]", "not a list"),
        ("choice", '{"a": 1}', "not a list"),
        ("choice", '["a", 1]', "must be a text"),
        ("choice", '["a", ""]', "must be a text"),
    ],
)
def test_structured_output_refuses_a_bad_specification(kind: Any, spec: Any, why: str) -> None:
    with pytest.raises(InvalidRequestError, match=why) as refused:
        StructuredOutput(kind, spec, "response_format")
    assert refused.value.param == "response_format"


def test_structured_outputs_are_equal_whoever_asked_for_them() -> None:
    one = StructuredOutput("regex", "a", "response_format")
    other = StructuredOutput("regex", "a", "structured_outputs")
    assert one == other
    assert hash(one) == hash(other)
