"""`GET /admin/trace`, asked for by hand; requests are entered into the books directly."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from evenflow.config import EvenflowConfig, ServerConfig
from evenflow.engine.outputs import Delta, RequestMetrics
from evenflow.engine.process.messages import AddRequest, StepOutput
from evenflow.server import recording
from evenflow.server.app import create_app
from evenflow.server.serving import Serving


class Listener:
    """Reads the stream; with `is_slow`, nothing until `hurry`."""

    def __init__(self, folder: Path, *, is_slow: bool = False) -> None:
        config = ServerConfig.model_validate({"data_dir": folder, "admin_api_key": "adm"})
        self.serving = Serving(EvenflowConfig(server=config))
        self.head: Message = {}
        self.lines: list[str] = []
        self._may_read = asyncio.Event()
        if not is_slow:
            self.hurry()
        self._has_news = asyncio.Event()
        self._gone = asyncio.Event()
        self._num_requests = 0
        headers = [(b"authorization", b"Bearer adm"), (b"host", b"localhost")]
        scope = {"type": "http", "method": "GET", "path": "/admin/trace", "query_string": b""}
        app = create_app(self.serving)
        self.task = asyncio.ensure_future(
            app({**scope, "headers": headers}, self._receive, self._send)
        )

    async def _receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.head = message
            return
        self.lines += message.get("body", b"").decode().splitlines()
        self._has_news.set()
        await self._may_read.wait()

    def hurry(self) -> None:
        self._may_read.set()

    def leave(self) -> None:
        self._gone.set()

    async def until_lines(self, num_lines: int) -> None:
        async with asyncio.timeout(60):
            while len(self.lines) < num_lines:
                self._has_news.clear()
                await self._has_news.wait()

    def serve(self, num_tokens: int = 3) -> None:
        """Enter a request into the books that is over at once."""
        self._num_requests += 1
        name = f"r{self._num_requests}"
        now_s = self.serving.clock.now_s()
        command = AddRequest(request_id=name, prompt_token_ids=[1, 2])
        self.serving.books.open(command, now_s, None)
        metrics = RequestMetrics(now_s, None, now_s, num_tokens, 0, 0, 2)
        delta = Delta(name, 0, None, "", finish_reason="stop", metrics=metrics)
        self.serving.books.on_output(StepOutput(at_s=now_s, started=[], deltas=[delta]))

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines if line]


async def test_listener_gets_a_row_for_each_request_and_an_end(tmp_path: Path) -> None:
    listener = Listener(tmp_path)
    listener.serve()
    await listener.until_lines(1)
    assert listener.lines == [""], "what came before it listened is not told"
    assert (b"content-type", b"application/x-ndjson") in listener.head["headers"]
    listener.serve(4)
    await listener.until_lines(2)
    listener.serve(5)
    listener.serving.stopping.set()
    await asyncio.wait_for(listener.task, 60)
    assert [row["output_length"] for row in listener.rows] == [4, 5]


async def test_slow_listener_gets_what_was_kept_and_a_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording.RowQueue.__init__, "__defaults__", (3,))
    listener = Listener(tmp_path, is_slow=True)
    await listener.until_lines(1)
    for num_tokens in range(1, 9):
        listener.serve(num_tokens)
    listener.hurry()
    await asyncio.wait_for(listener.task, 60)
    *rows, last = listener.rows
    assert [row["output_length"] for row in rows] == [1, 2, 3]
    assert last["error"]["code"] == "listener_too_slow"


async def test_nothing_is_recorded_once_a_listener_has_left(tmp_path: Path) -> None:
    listener = Listener(tmp_path)
    await listener.until_lines(1)
    listener.leave()
    await asyncio.wait_for(listener.task, 60)
    assert listener.serving.books._recorders == []
