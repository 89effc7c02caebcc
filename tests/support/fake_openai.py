"""A server that speaks OpenAI's streaming API by a script, on a port of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

Fault = Literal["status_429", "dies", "stops_early", "malformed", "error_event", "hangs"]


@dataclass
class FakeOpenAI:
    """What the server does, and what it has been asked.

    Attributes:
        faults: by marker, what happens to a request whose prompt contains it.
        sends_usage: the last chunk has token counts.
        tokens_per_chunk: how many tokens a chunk carries.
        has_tokenize: /tokenize exists; a word is two tokens there, and a text has one more.
        num_not_ready: how many requests are refused before the first is answered.
        gate: answers wait until so many are under way at once.
        bodies: of the requests for streams, in order of arrival.
        headers: likewise.
        most_concurrent: answers that have been under way at once.
    """

    faults: dict[str, Fault] = field(default_factory=dict)
    sends_usage: bool = True
    tokens_per_chunk: int = 1
    has_tokenize: bool = False
    num_not_ready: int = 0
    gate: int = 1
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_concurrent: int = 0
    num_running: int = 0
    gate_opened: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def answer(self, request: Request) -> Response:
        if self.num_not_ready:
            self.num_not_ready -= 1
            return JSONResponse({"error": {"message": "still loading"}}, status_code=503)
        body = json.loads(await request.body())
        if not body.get("stream"):
            return JSONResponse({"choices": []})
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        text = prompt_text(body)
        fault = next((fault for mark, fault in self.faults.items() if mark in text), None)
        if fault == "status_429":
            error = {"error": {"message": "the queue is full", "code": "queue_full"}}
            return JSONResponse(error, status_code=429)
        return StreamingResponse(self._stream(body, fault), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any], fault: Fault | None) -> AsyncIterator[str]:
        self.num_running += 1
        self.most_concurrent = max(self.most_concurrent, self.num_running)
        try:
            if fault == "hangs":
                await asyncio.Event().wait()
            if self.most_concurrent >= self.gate:
                self.gate_opened.set()
            await self.gate_opened.wait()
            async for chunk in self._chunks(body, fault):
                yield chunk
        finally:
            self.num_running -= 1

    async def _chunks(self, body: dict[str, Any], fault: Fault | None) -> AsyncIterator[str]:
        num_tokens = body["max_tokens"]
        is_chat = "messages" in body
        if is_chat:
            yield event(chat_choice({"role": "assistant", "content": ""}))
        for begin in range(0, num_tokens, self.tokens_per_chunk):
            if begin and fault == "dies":
                raise ConnectionResetError("the server dies, as scripted")
            if begin and fault == "stops_early":
                return
            if begin and fault == "malformed":
                yield "data: {not json\n\n"
            if begin and fault == "error_event":
                yield event({"error": {"message": "out of memory"}})
            end = min(begin + self.tokens_per_chunk, num_tokens)
            text = "".join(f" w{index}" for index in range(begin, end))
            yield event(chat_choice({"content": text}) if is_chat else text_choice(text))
        closing = chat_choice({}, "length") if is_chat else text_choice("", "length")
        yield ": a comment\n\n" + event(closing)
        if self.sends_usage:
            num_prompt = len(prompt_text(body).split())
            usage = {"prompt_tokens": num_prompt, "completion_tokens": num_tokens}
            yield event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    async def tokenize(self, request: Request) -> Response:
        if not self.has_tokenize:
            return JSONResponse({"error": "there is no such path"}, status_code=404)
        body = json.loads(await request.body())
        return JSONResponse({"count": 2 * len(body["prompt"].split()) + 1})


def prompt_text(body: dict[str, Any]) -> str:
    if "messages" in body:
        return " ".join(message["content"] for message in body["messages"])
    prompt = body["prompt"]
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def text_choice(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]}


def chat_choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


@contextmanager
def serve_fake_openai(**script: Any) -> Iterator[FakeOpenAI]:
    """Serve on 127.0.0.1 until the block ends."""
    fake = FakeOpenAI(**script)
    app = FastAPI()
    app.post("/v1/completions")(fake.answer)
    app.post("/v1/chat/completions")(fake.answer)
    app.post("/tokenize")(fake.tokenize)
    app.get("/v1/models")(lambda: {"data": [{"id": "fake-model"}]})
    settings = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(settings)
    listener = settings.bind_socket()
    listener.listen()  # early connections wait until the thread accepts them
    fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
