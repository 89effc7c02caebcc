"""Reading bodies and writing streams, with clients that may be slow, hostile or gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from evenflow.core.errors import InvalidRequestError
from evenflow.core.structured import is_deeper_than
from evenflow.server.errors import BodyTimeoutError, RequestTooLargeError

T = TypeVar("T")

MAX_DEPTH = 128
"""Most lists and objects inside each other in a body."""

_MAX_PARTS = 1 << 17

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a request whose client went away; nobody receives it, but logs show it."""

_encode = msgspec.json.Encoder().encode


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """Read a body.

    Raises:
        RequestTooLargeError: it has, or says that it has, more than `max_bytes`.
        BodyTimeoutError: it takes longer than `timeout_s`.
    """
    check_declared_size(request, max_bytes)
    chunks = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                chunks += chunk
                if len(chunks) > max_bytes:
                    raise too_large(max_bytes)
    except TimeoutError:
        raise BodyTimeoutError(
            "the request's body did not arrive in time", why=f"the limit is {timeout_s:g} s"
        ) from None
    return bytes(chunks)


def check_declared_size(request: Request, max_bytes: int) -> None:
    """Refuse a body that says it is too large, before any of it is read.

    Raises:
        RequestTooLargeError: it has more than `max_bytes` by its own account.
    """
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> RequestTooLargeError:
    """Return the error for a body of more than `max_bytes`."""
    return RequestTooLargeError(
        "the request's body is too large",
        why=f"the limit is {max_bytes} bytes",
        fix="Send less, or start the server with a larger --max-request-bytes",
    )


def decode_json(body: bytes) -> Any:
    """Decode a body.

    Raises:
        InvalidRequestError: it is not JSON in UTF-8, or has too many parts or levels.
    """
    # Decoding holds up everybody else: a MiB of text for a millisecond, one of `[]` for 100.
    num_parts = sum(map(body.count, (b"[", b"{", b":")))
    if num_parts > _MAX_PARTS:
        raise InvalidRequestError(
            "the body has too many lists, objects and fields",
            param="body",
            why=f"it has {num_parts} times [, {{ or :, and {_MAX_PARTS} are accepted",
            fix="Send it in parts",
        )
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise InvalidRequestError(
            "the body is not valid JSON", param="body", why=str(error)
        ) from None
    if num_parts > MAX_DEPTH and is_deeper_than(value, MAX_DEPTH):
        raise _too_deep()
    return value


def _too_deep() -> InvalidRequestError:
    why = f"{MAX_DEPTH} lists and objects inside each other are accepted"
    return InvalidRequestError("the body is nested too deeply", param="body", why=why)


class EventStream(Response):
    """Server-sent events. When the client goes away, the generator is closed at once.

    Args:
        events: yields what is written, as whole events.
        headers: further response headers.
        on_close: called when nothing more will be written, also if nothing ever was.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        headers: Mapping[str, str] | None = None,
        *,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write events until there are no more or nobody listens."""
        pump = asyncio.ensure_future(self._pump(send))
        watch = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({pump, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, watch):
                task.cancel()
            outcomes = await asyncio.gather(pump, watch, return_exceptions=True)
            await self._events.aclose()
            if self._on_close is not None:
                self._on_close()
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]

    async def _pump(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class RowStream(EventStream):
    """The same for JSON lines."""

    media_type = "application/x-ndjson"


def event(data: object, name: str | None = None) -> bytes:
    """Write one server-sent event with `data` as JSON."""
    head = b"data: " if name is None else b"event: " + name.encode() + b"\ndata: "
    return head + _encode(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"
"""What OpenAI's streams end with."""


class JSONBytes(Response):
    """A response body that is encoded once, by msgspec."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Encode the content."""
        return _encode(content)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what `work` returns, or cancel it and return None when the client goes away."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
