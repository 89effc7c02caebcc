"""Structured output with a real vocabulary and a real model."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest

from evenflow import LLM, SamplingParams
from evenflow.core.structured import StructuredOutput

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "pattern": "^[a-z]{1,8}@[a-z]{1,8}\\.com$"},
        "pets": {
            "type": "array",
            "items": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
                        "required": ["kind"],
                        "additionalProperties": False,
                    },
                    {"type": "null"},
                ]
            },
            "maxItems": 1,
        },
    },
    "required": ["name", "age", "email", "pets"],
    "additionalProperties": False,
}


@pytest.mark.model
def test_twenty_requests_of_the_real_model_validate_against_their_schema(smollm2: LLM) -> None:
    schema = StructuredOutput("json_schema", json.dumps(SCHEMA))
    conversations = [
        [{"role": "user", "content": f"Describe person {number} as JSON."}] for number in range(20)
    ]
    params = [
        SamplingParams(
            structured=schema, temperature=0.0 if row < 4 else 1.5, seed=row, max_tokens=400
        )
        for row in range(20)
    ]
    outputs = smollm2.chat(conversations, params)
    completions = [output.outputs[0] for output in outputs]
    assert [completion.finish_reason for completion in completions] == ["stop"] * 20
    for completion in completions:
        jsonschema_rs.validate(SCHEMA, json.loads(completion.text))
