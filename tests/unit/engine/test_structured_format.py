from __future__ import annotations

import json
from typing import Any

import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.core.structured import StructuredOutput
from evenflow.engine.structured_format import parse_structured

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, StructuredOutput("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            StructuredOutput("json_schema", json.dumps(SCHEMA)),
        ),
        (
            {"structured_outputs": {"json": SCHEMA}},
            StructuredOutput("json_schema", json.dumps(SCHEMA)),
        ),
        (
            {"structured_outputs": {"json": json.dumps(SCHEMA)}},
            StructuredOutput("json_schema", json.dumps(SCHEMA)),
        ),
        ({"structured_outputs": {"json_object": True}}, StructuredOutput("json_object")),
        (
            {"structured_outputs": {"regex": "a+", "json": None, "json_object": False}},
            StructuredOutput("regex", "a+"),
        ),
        (
            {"structured_outputs": {"choice": ["yes", "no"]}},
            StructuredOutput("choice", '["yes", "no"]'),
        ),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            StructuredOutput("grammar", 'start: "a"'),
        ),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}},
            StructuredOutput("regex", "a"),
        ),
    ],
)
def test_parse_structured_reads_both_fields(
    fields: dict[str, Any], expected: StructuredOutput | None
) -> None:
    assert parse_structured(fields) == expected


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({"response_format": "json"}, "response_format", "not an object"),
        ({"response_format": {"type": "xml"}}, "response_format", "type is 'xml'"),
        ({"response_format": {}}, "response_format", "type is None"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "with a schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": deep(5000)}}},
            "response_format",
            "64 levels",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format",
            "not a JSON object",
        ),
        ({"structured_outputs": []}, "structured_outputs", "not an object"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs",
            "not 2",
        ),
        ({"structured_outputs": {"xgrammar": "a"}}, "structured_outputs", "'xgrammar'"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs", "not a string"),
        ({"structured_outputs": {"choice": "yes"}}, "structured_outputs", "not a list"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs", "true or false"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "Send one of them",
        ),
    ],
)
def test_parse_structured_names_the_field_that_is_wrong(
    fields: dict[str, Any], param: str, why: str
) -> None:
    with pytest.raises(InvalidRequestError, match=why) as refused:
        parse_structured(fields)
    assert refused.value.param == param
