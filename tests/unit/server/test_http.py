"""Reading bodies and writing streams, with clients as bad as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any

import pytest
from fastapi import Request
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.types import Message

from evenflow.core.errors import InvalidRequestError
from evenflow.server.errors import BodyTimeoutError, RequestTooLargeError
from evenflow.server.http import (
    MAX_DEPTH,
    EventStream,
    JSONBytes,
    check_declared_size,
    decode_json,
    event,
    read_body,
    unless_disconnected,
)

SCOPE = {"type": "http", "method": "POST", "path": "/"}
GONE: Message = {"type": "http.disconnect"}
LONG_S = 60.0


def request(chunks: Iterable[bytes], *, length: int | None = None, ends: bool = True) -> Request:
    """Return a request whose body comes in chunks; one without end never sends the last word."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if ends:
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    left = iter(messages)

    async def receive() -> Message:
        for message in left:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    return Request({**SCOPE, "headers": headers}, receive)


# ---- Bodies --------------------------------------------------------------------------------------


async def test_read_body_returns_all_chunks() -> None:
    assert await read_body(request([b"ab", b"", b"cd"], length=4), 4, LONG_S) == b"abcd"
    assert await read_body(request([]), 0, LONG_S) == b""


async def test_read_body_stops_at_the_limit_when_no_length_is_declared() -> None:
    taken = []

    def endless() -> Iterable[bytes]:
        for _ in range(100):
            taken.append(1)
            yield b"abc"

    with pytest.raises(RequestTooLargeError) as caught:
        await read_body(request(endless()), 8, LONG_S)
    assert "8 bytes" in str(caught.value)


async def test_read_body_refuses_a_body_that_says_it_is_too_large_without_reading_it() -> None:
    with pytest.raises(RequestTooLargeError):
        await read_body(request([], length=9, ends=False), 8, LONG_S)


async def test_read_body_gives_up_a_body_that_does_not_arrive() -> None:
    with pytest.raises(BodyTimeoutError):
        await read_body(request([b"{"], ends=False), 100, 0.01)


def test_declared_size_may_be_missing() -> None:
    check_declared_size(request([]), 0)


DEEP = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH


@pytest.mark.parametrize(
    "body", [b"1", b" null ", b'{"a": [1.5, "\xc3\xa9"]}', DEEP, b'"\\ud83d\\ude00"', b"9" * 400]
)
def test_decode_json_reads_what_is_json(body: bytes) -> None:
    assert decode_json(body) == json.loads(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xff",
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"\x00"',
        b"NaN",
        b"Infinity",
        b"1e999",
        b"{'a': 1}",
        b'{"a": 1,}',
        b"1 2",
        b"\xef\xbb\xbf1",
        b"[" + DEEP + b"]",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" * 1_000_000,
        b"[[]," * 100_000 + b"1" + b"]" * 100_000,
        b"[" + b"[]," * (1 << 17) + b"1]",
        b"9" * 5000,
    ],
)
def test_decode_json_refuses_everything_else_in_few_words(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decode_json(body)
    assert caught.value.param == "body"
    assert len(str(caught.value)) < 500


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.binary(max_size=40) | st.text('[]{}:,"\\ue1.-0tfn ', max_size=40).map(str.encode))
@example(b'{"a":1,"a":2}')
def test_decode_json_agrees_with_the_standard_library_on_any_bytes(body: bytes) -> None:
    try:
        value = decode_json(body)
    except InvalidRequestError:
        return
    assert value == json.loads(body)


# ---- Streams -------------------------------------------------------------------------------------


class Client:
    """What a client got, and whether it is still there.

    Args:
        on_send: called with each message that is sent to it; may leave.
    """

    def __init__(self, on_send: Callable[[Client, Message], None] | None = None) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self._on_send = on_send

    async def receive(self) -> Message:
        await self.gone.wait()
        return GONE

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if self._on_send is not None:
            self._on_send(self, message)
        await asyncio.sleep(0)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Source:
    """Events, and how their generator ended."""

    def __init__(self, *events: bytes, error: Exception | None = None, ends: bool = True) -> None:
        self.endings: list[str] = []
        self._events = events
        self._error = error
        self._ends = ends

    async def run(self) -> AsyncGenerator[bytes]:
        try:
            for each in self._events:
                yield each
            if self._error is not None:
                raise self._error
            if not self._ends:
                await asyncio.Event().wait()
            self.endings.append("over")
        except BaseException as error:
            self.endings.append(type(error).__name__)
            raise

    async def answer(self, client: Client) -> None:
        def close() -> None:
            self.endings.append("closed")

        stream = EventStream(self.run(), {"X-Request-Id": "r1"}, on_close=close)
        await asyncio.wait_for(stream(dict(SCOPE), client.receive, client.send), LONG_S)


async def test_stream_writes_all_events_and_ends() -> None:
    client, source = Client(), Source(b"a", b"b")
    await source.answer(client)
    assert client.body == b"ab"
    assert client.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    headers = dict(client.sent[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"x-request-id"] == b"r1"
    assert headers[b"cache-control"] == b"no-cache"
    assert b"content-length" not in headers
    assert source.endings == ["over", "closed"]


async def test_stream_closes_its_generator_when_the_client_leaves_while_it_waits() -> None:
    def leave(client: Client, message: Message) -> None:
        if message.get("body"):
            client.gone.set()

    client, source = Client(leave), Source(b"a", ends=False)
    await source.answer(client)
    assert client.body == b"a"
    assert source.endings == ["CancelledError", "closed"]


async def test_stream_closes_when_the_client_leaves_before_the_first_event() -> None:
    client, source = Client(), Source(b"a", ends=False)
    client.gone.set()
    await source.answer(client)
    assert source.endings[-1] == "closed"
    assert client.body in (b"", b"a")


async def test_stream_closes_when_the_client_takes_nothing_any_more() -> None:
    class Stuck(Client):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if message.get("body"):
                self.gone.set()
                await asyncio.Event().wait()

    client, source = Stuck(), Source(b"a", b"b")
    await source.answer(client)
    assert source.endings == ["GeneratorExit", "closed"]


async def test_stream_passes_on_the_error_of_its_generator_and_closes() -> None:
    client, source = Client(), Source(b"a", error=ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await source.answer(client)
    assert source.endings == ["ValueError", "closed"]
    assert client.sent[-1]["more_body"], "a stream that broke does not end as if it were whole"


async def test_stream_closes_when_sending_fails() -> None:
    def fail(client: Client, message: Message) -> None:
        if message.get("body"):
            raise OSError("the connection is gone")

    source = Source(b"a", b"b")
    with pytest.raises(OSError, match="gone"):
        await source.answer(Client(fail))
    assert source.endings == ["GeneratorExit", "closed"]


async def test_stream_closes_when_its_task_is_cancelled() -> None:
    client, source = Client(), Source(b"a", ends=False)
    task = asyncio.create_task(source.answer(client))
    while not client.body:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.endings == ["CancelledError", "closed"]


def test_event_is_one_event_whatever_it_holds() -> None:
    written = event({"text": "a\n\ndata: b\r\u2028"}, "delta")
    assert written.startswith(b"event: delta\ndata: {")
    assert written.count(b"\n") == 3
    assert b"\r" not in written
    assert written.endswith(b"\n\n")
    assert event(1) == b"data: 1\n\n"


def test_json_response_is_compact_utf8() -> None:
    response = JSONBytes({"text": "é"})
    assert response.body == '{"text":"é"}'.encode()
    assert response.headers["content-type"] == "application/json"


# ---- Waiting for an answer -----------------------------------------------------------------------


class Work:
    """Something to wait for."""

    def __init__(self, result: Callable[[], Awaitable[Any]]) -> None:
        self.was_cancelled = False
        self._result = result

    async def run(self) -> Any:
        try:
            return await self._result()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


async def _forever() -> None:
    await asyncio.Event().wait()


def watched(client: Client) -> Request:
    return Request({**SCOPE, "headers": []}, client.receive)


async def test_work_is_returned_while_the_client_waits() -> None:
    work = Work(lambda: asyncio.sleep(0, "done"))
    assert await unless_disconnected(watched(Client()), work.run()) == "done"


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    client = Client()
    work = Work(_forever)
    waiting = asyncio.create_task(unless_disconnected(watched(client), work.run()))
    await asyncio.sleep(0)
    client.gone.set()
    assert await asyncio.wait_for(waiting, LONG_S) is None
    assert work.was_cancelled


async def test_work_that_fails_raises_its_error() -> None:
    async def fail() -> None:
        raise InvalidRequestError("no")

    with pytest.raises(InvalidRequestError):
        await unless_disconnected(watched(Client()), Work(fail).run())


async def test_work_is_cancelled_when_nobody_waits_for_its_waiter() -> None:
    work = Work(_forever)
    waiting = asyncio.create_task(unless_disconnected(watched(Client()), work.run()))
    await asyncio.sleep(0.001)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.was_cancelled


async def test_no_task_is_left_over() -> None:
    await unless_disconnected(watched(Client()), Work(lambda: asyncio.sleep(0)).run())
    await Source(b"a").answer(Client())
    assert asyncio.all_tasks() == {asyncio.current_task()}
