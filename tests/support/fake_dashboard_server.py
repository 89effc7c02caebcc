"""The dashboard's server without a model: the same routes over a small invented workload.

`PYTHONPATH=tests python tests/support/fake_dashboard_server.py [--port N]` serves it to look at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import click
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from evenflow.server.dashboard import dashboard_router
from support.fake_workload import TICK_S, FakeWorkload

ANSWER = ["The", "scheduler", "gives", "each", "tenant", "its", "share", "of", "every", "step."]


class FakeServer:
    """The routes, over a workload that moves while `is_moving`."""

    def __init__(
        self, workload: FakeWorkload, *, api_key: str | None = None, period_s: float = TICK_S
    ) -> None:
        self.workload = workload
        self.api_key = api_key
        self.period_s = period_s
        self.is_moving = True
        self.is_silent = False
        self.num_open_chats = 0
        self.app = FastAPI()
        self.app.include_router(dashboard_router())
        self.app.middleware("http")(self._check_key)
        self.app.get("/ui/state")(self._state)
        self.app.get("/ui/blocks")(self._blocks)
        self.app.get("/ui/events")(self._events)
        self.app.get("/v1/requests/{request_id}/explain")(self._explain)
        self.app.post("/v1/chat/completions")(self._chat)

    async def _check_key(self, request: Request, call_next: Any) -> Any:
        is_data = request.url.path in {"/ui/state", "/ui/blocks", "/ui/events"}
        is_guarded = is_data or request.url.path.startswith("/v1/")
        given = request.headers.get("Authorization")
        if self.api_key and is_guarded and given != f"Bearer {self.api_key}":
            return _error(401, "the API key is missing or unknown")
        return await call_next(request)

    async def _state(self) -> dict[str, Any]:
        return self.workload.state()

    async def _blocks(self) -> dict[str, Any]:
        return self.workload.blocks()

    async def _events(self) -> StreamingResponse:
        return StreamingResponse(self._feed(), media_type="text/event-stream")

    async def _feed(self) -> AsyncIterator[str]:
        while not self.is_silent:
            if self.is_moving:
                self.workload.advance()
            yield f"data: {json.dumps(self.workload.state())}\n\n"
            await asyncio.sleep(self.period_s)

    async def _explain(self, request_id: str) -> Any:
        return self.workload.explain(request_id) or _error(404, "there is no such request")

    async def _chat(self) -> StreamingResponse:
        return StreamingResponse(self._answer(), media_type="text/event-stream")

    async def _answer(self) -> AsyncIterator[str]:
        self.num_open_chats += 1
        try:
            for word in ANSWER * 4:
                yield f"data: {json.dumps(_chunk(word + ' '))}\n\n"
                await asyncio.sleep(0.03)
        finally:
            self.num_open_chats -= 1
        usage = {"completion_tokens": 4 * len(ANSWER)}
        yield f"data: {json.dumps({'id': 'chatcmpl-fake', 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"


def _chunk(text: str) -> dict[str, Any]:
    return {"id": "chatcmpl-fake", "choices": [{"index": 0, "delta": {"content": text}}]}


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status_code=status)


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve an application on the loopback interface; gives its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--num-blocks", type=int, default=2048)
    arguments = parser.parse_args()
    weights = {"search": 2.0, "assistant": 1.0, "nightly-batch": 1.0, "evaluation": 0.5}
    workload = FakeWorkload(weights, arguments.num_blocks)
    with serving(FakeServer(workload).app, arguments.port) as url:
        click.echo(f"{url}/ui")
        threading.Event().wait()


if __name__ == "__main__":
    main()
