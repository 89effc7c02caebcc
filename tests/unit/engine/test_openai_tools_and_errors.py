"""Tools beside structured output, and the form of errors."""

from __future__ import annotations

from typing import Any

import pytest

from evenflow.core.errors import (
    DrainingError,
    EngineFailedError,
    EvenflowError,
    InvalidRequestError,
    QueueFullError,
    RateLimitError,
)
from evenflow.engine.openai import CHAT, error_body, parse_request
from evenflow.tokenization.tool_calls import ToolCalling
from support.text_engine import tokenizer

MESSAGES = [{"role": "user", "content": "Hi"}]
MAX_TOOLS = 128


def tool(name: str, description: str = "") -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"x": {"description": description}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def structured(**fields: Any) -> Any:
    body = {"messages": MESSAGES, "tools": [tool("f")], **fields}
    return parse_request(CHAT, body, tokenizer(), ToolCalling(tokenizer())).params.structured


def test_json_object_beside_tools_becomes_one_grammar() -> None:
    form = structured(response_format={"type": "json_object"})
    assert form.kind == "tool_calls"
    assert '{"type": "object"' in form.spec
    assert '"f"' in form.spec.replace("\\", "")


def test_free_tools_need_no_grammar() -> None:
    assert structured() is None


@pytest.mark.parametrize("form", [{"regex": "a+"}, {"choice": ["a"]}, {"grammar": "start: /a/"}])
def test_other_forms_beside_tools_are_refused_by_their_name(form: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="tools") as caught:
        structured(structured_outputs=form)
    assert caught.value.param == "structured_outputs"


def test_as_many_and_as_large_tools_as_a_request_may_have_fit_into_a_grammar() -> None:
    tools = [tool(f"function_{number}", "d" * 3800) for number in range(MAX_TOOLS)]
    form = structured(tools=tools, tool_choice="required")
    assert len(form.spec) > 480_000
    with pytest.raises(InvalidRequestError, match="limit is 16384"):
        structured(tools=None, structured_outputs={"grammar": "start: /" + "a" * 16384 + "/"})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError("x", param="p"), "invalid_request_error"),
        (QueueFullError("x", retry_after_s=1), "rate_limit_error"),
        (RateLimitError("x", retry_after_s=1), "rate_limit_error"),
        (DrainingError("x", retry_after_s=1), "server_error"),
        (EngineFailedError("x"), "server_error"),
    ],
)
def test_error_body_has_openais_type(error: EvenflowError, kind: str) -> None:
    assert error_body(error)["type"] == kind
