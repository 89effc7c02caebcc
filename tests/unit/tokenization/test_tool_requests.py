"""The fields of a chat body that are about tools."""

from __future__ import annotations

from typing import Any

import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.tokenization.tool_calls import parse_tool_request


def tool(name: str = "find", **function: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def chosen(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def test_request_is_none_without_tools_or_when_none_may_be_called() -> None:
    assert parse_tool_request({}) is None
    assert parse_tool_request({"tools": [], "tool_choice": "auto"}) is None
    assert parse_tool_request({"tools": [tool()], "tool_choice": "none"}) is None


def test_request_lets_the_model_choose_by_default() -> None:
    request = parse_tool_request({"tools": [tool("a"), tool("b")]})
    assert request is not None
    assert (request.names, request.must_call, request.max_calls) == ({"a", "b"}, False, None)
    assert request.functions[0].parameters == {"type": "object"}
    assert not request.is_constrained


@pytest.mark.parametrize("field", [{"parallel_tool_calls": False}, {"tool_choice": chosen("find")}])
def test_request_has_one_call_when_one_is_asked_for(field: dict[str, Any]) -> None:
    request = parse_tool_request({"tools": [tool()], **field})
    assert request is not None
    assert request.max_calls == 1


def test_request_is_constrained_by_a_strict_function() -> None:
    request = parse_tool_request({"tools": [tool("a"), tool("b", strict=True)]})
    assert request is not None
    assert request.is_constrained


@pytest.mark.parametrize(
    ("choice", "names", "must_call"),
    [
        ("required", {"a", "b"}, True),
        (chosen("b"), {"b"}, True),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [chosen("a")]}},
            {"a"},
            False,
        ),
    ],
)
def test_request_follows_the_choice(choice: object, names: set[str], must_call: bool) -> None:
    request = parse_tool_request({"tools": [tool("a"), tool("b")], "tool_choice": choice})
    assert request is not None
    assert (request.names, request.must_call) == (names, must_call)
    assert len(request.tools) == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": "x"}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool('a"b')]}, "tools[0].function.name"),
        ({"tools": [tool("a" * 129)]}, "tools[0].function.name"),
        ({"tools": [tool("a"), tool("a")]}, "tools[1].function.name"),
        ({"tools": [tool(description=1)]}, "tools[0].function.description"),
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters"),
        ({"tools": [tool(f"f{n}") for n in range(129)]}, "tools"),
        ({"tools": [tool(description="a" * 600_000)]}, "tools"),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": chosen("other")}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool()], "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_request_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_tool_request(body)
    assert refused.value.param == param


def test_request_is_refused_when_a_schema_is_nested_beyond_reason() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"properties": schema}
    with pytest.raises(InvalidRequestError) as refused:
        parse_tool_request({"tools": [tool(parameters=schema)]})
    assert refused.value.param == "tools"
