"""The OpenAPI document against the code that reads bodies."""

from __future__ import annotations

import pytest

from evenflow.engine.openai import CHAT, COMPLETIONS, request
from evenflow.server.messages import request as messages_request
from evenflow.server.responses import request as responses_request
from evenflow.server.schemas import SCHEMAS

READ = {
    "ChatCompletionRequest": request._KNOWN[CHAT],
    "CompletionRequest": request._KNOWN[COMPLETIONS],
    "ResponsesRequest": responses_request._KNOWN,
    "MessagesRequest": messages_request._KNOWN,
    "CountTokensRequest": messages_request._KNOWN,
}


@pytest.mark.parametrize("name", READ)
def test_schema_describes_exactly_the_fields_that_are_read(name: str) -> None:
    assert SCHEMAS[name]["properties"].keys() == READ[name]


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_requires_only_fields_it_describes(name: str) -> None:
    assert set(SCHEMAS[name]["required"]) <= SCHEMAS[name]["properties"].keys()
