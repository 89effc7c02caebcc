"""What the application makes of requests that no endpoint answers."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.types import Message

from evenflow.config import EvenflowConfig, ServerConfig
from evenflow.server.app import create_app
from evenflow.server.serving import Serving

LEAVES: Message = {"type": "http.disconnect"}
ENDS: Message = {"type": "http.request", "body": b"", "more_body": False}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    config = EvenflowConfig(server=ServerConfig(data_dir=tmp_path))
    return create_app(Serving(config))


async def ask(app: FastAPI, method: str, path: str, last: Message = ENDS) -> tuple[int, bytes]:
    """Send a request whose body begins and then ends in one way or another."""
    messages = [{"type": "http.request", "body": b'{"prompt":', "more_body": True}, last]
    sent: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        return await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": method, "path": path, "query_string": b""}
    await asyncio.wait_for(app({**scope, "headers": headers}, receive, send), 60)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/none", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/completions", 400, "invalid_request"),
    ],
)
async def test_app_answers_in_openais_form(
    app: FastAPI, method: str, path: str, status: int, code: str
) -> None:
    answered, body = await ask(app, method, path)
    error = json.loads(body)["error"]
    assert (answered, error["code"]) == (status, code)
    assert error.keys() == {"message", "type", "param", "code"}


async def test_app_answers_in_anthropics_form_where_that_is_asked(app: FastAPI) -> None:
    answered, body = await ask(app, "POST", "/v1/messages")
    said = json.loads(body)
    assert (answered, said["type"]) == (400, "error")
    assert said["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/tokenize"])
async def test_app_takes_a_client_that_leaves_in_its_body_for_no_bug(
    app: FastAPI, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert await ask(app, "POST", path, LEAVES) == (499, b"")
    assert caplog.records == []
