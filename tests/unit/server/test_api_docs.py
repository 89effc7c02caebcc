"""docs/api.md against the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenflow.core.errors import EvenflowError, InvalidRequestError
from evenflow.engine import openai
from evenflow.server import errors, messages, responses, routes
from evenflow.server.schemas import SCHEMAS

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")}
BODIES = {
    "`POST /v1/chat/completions`": "ChatCompletionRequest",
    "`POST /v1/completions`": "CompletionRequest",
    "`POST /v1/responses`": "ResponsesRequest",
    "`POST /v1/messages`": "MessagesRequest",
    "`POST /v1/embeddings`": "EmbeddingRequest",
}
IGNORED = {
    "`POST /v1/chat/completions`": openai.IGNORED - {"user"},  # it names the tenant
    "`POST /v1/completions`": openai.IGNORED - {"user"},
    "`POST /v1/responses`": responses.IGNORED,
    "`POST /v1/messages`": messages.IGNORED,
}
# The command line's and the start's; no request is answered with these.
NOT_ANSWERED = {
    "invalid_config",
    "invalid_model_file",
    "kv_disk_unusable",
    "kv_memory_too_small",
    "rejected",
    "unsupported_model",
}


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def kinds_of_error(kind: type[EvenflowError] = EvenflowError) -> Iterator[type[EvenflowError]]:
    """Yield the kinds a server knows; other tests may have imported those of the command line."""
    if not kind.__module__.startswith(("evenflow.cli", "evenflow.workloads", "evenflow.bench")):
        yield kind
    for narrower in kind.__subclasses__():
        yield from kinds_of_error(narrower)


@pytest.mark.parametrize("section", BODIES)
def test_page_names_every_field_of_a_body(section: str) -> None:
    assert SCHEMAS[BODIES[section]]["properties"].keys() <= names_in(SECTIONS[section])


@pytest.mark.parametrize("section", IGNORED)
def test_page_lists_exactly_the_fields_without_effect(section: str) -> None:
    listed = re.search(r"^Without effect: (.*?)\.", SECTIONS[section], re.DOTALL | re.MULTILINE)
    assert listed is not None
    assert names_in(listed[1]) == IGNORED[section]


def test_page_names_every_route() -> None:
    documented = set(re.findall(r"`(GET|POST|DELETE) (/[^`?]*)", PAGE))
    served = {
        (method, route.path.replace(":path}", "}"))
        for family in routes.ALL
        for route in family.routes
        if route.include_in_schema
        for method in route.methods
    }
    assert documented == served


def test_page_names_every_error_code_with_its_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", SECTIONS["Errors"], re.MULTILINE)
    request_errors = {kind.code for kind in kinds_of_error(InvalidRequestError)}
    expected = {
        kind.code: errors.STATUS_CODES.get(kind.code, 400 if kind.code in request_errors else 500)
        for kind in kinds_of_error()
        if kind.__module__.startswith("evenflow.") and kind.code not in NOT_ANSWERED
    }
    assert {code: int(status) for code, status in rows} == expected
