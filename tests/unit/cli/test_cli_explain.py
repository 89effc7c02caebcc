from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from click.testing import CliRunner, Result

from evenflow.cli import main
from evenflow.core.events import EventKind, RequestEvent, WaitReason
from evenflow.engine.explain import explain

BODY = explain(
    [
        RequestEvent(EventKind.QUEUED, 0.0, "12 others waiting", WaitReason.SEATS),
        RequestEvent(EventKind.SCHEDULED, 3.0, "0 of 8 tokens [already] have KV"),
        RequestEvent(EventKind.FIRST_TOKEN, 3.5, "", num_tokens=8),
        RequestEvent(EventKind.FINISHED, 4.0, "length limit", num_tokens=10),
    ],
    request_id="chatcmpl-1",
    tenant_id="ann",
    status="length",
    arrival_s=0.0,
).to_json()

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `evenflow explain` against a server that is a function."""

    def run(handler: Handler, *arguments: str) -> Result:
        def get(url: str, **options) -> httpx.Response:
            options.pop("timeout")
            with httpx.Client(transport=httpx.MockTransport(handler)) as client:
                return client.get(url, **options)

        monkeypatch.setattr(httpx, "get", get)
        return CliRunner().invoke(main, ["explain", *arguments], env={"COLUMNS": "120"})

    return run


def test_explain_draws_a_bar_to_scale_and_sums_up(ask) -> None:
    result = ask(lambda _: httpx.Response(200, json=BODY), "chatcmpl-1")
    assert result.exit_code == 0
    head, bar, *rest = result.stdout.splitlines()
    assert head == "chatcmpl-1  tenant ann  length  4.00 s"
    assert [bar.count(glyph) for glyph in "░▆█"] == [75, 13, 12]
    assert any("0 of 8 tokens [already] have KV" in line for line in rest)
    assert any("75%" in line and "12 others waiting" in line for line in rest)
    assert "raise --max-num-seqs" in " ".join(rest)


def test_explain_asks_with_the_key_for_the_id_as_it_is(ask) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=BODY)

    result = ask(answer, "a/b#1", "--url", "http://there:1/", "--api-key", "secret", "--json")
    assert json.loads(result.stdout) == BODY
    assert str(seen[0].url) == "http://there:1/v1/requests/a%2Fb%231/explain"
    assert seen[0].headers["authorization"] == "Bearer secret"


def test_explain_shows_the_servers_error(ask) -> None:
    body = {"error": {"message": "there is no request 'x'.", "code": "request_not_found"}}
    result = ask(lambda _: httpx.Response(404, json=body), "x")
    assert result.exit_code == 1
    assert "Error [request_not_found]: there is no request 'x'" in result.stderr.replace("T", "t")


def test_explain_says_so_when_that_is_no_evenflow_server(ask) -> None:
    result = ask(lambda _: httpx.Response(502, text="<html>"), "x")
    assert "answers with status 502" in result.stderr


def test_explain_says_where_it_looked_when_nobody_answers(ask) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    result = ask(refuse, "x", "--url", "http://nowhere:9")
    assert result.exit_code == 1
    assert "Error [server_unreachable]: no answer from http://nowhere:9" in result.stderr


def test_explain_draws_nothing_for_a_life_without_length(ask) -> None:
    empty = explain([], request_id="r", tenant_id="t", status="waiting", arrival_s=0.0).to_json()
    result = ask(lambda _: httpx.Response(200, json=empty), "r")
    assert result.stdout.splitlines() == ["r  tenant t  waiting  0.0 ms", "It took no time."]
