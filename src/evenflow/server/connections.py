"""Connections of clients that are slow, greedy or confused: what uvicorn leaves unbounded.

    connect ──▶ head ──▶ body ──▶ answer ──▶ (next head) ...
        └─ so many seconds ─┘         └─ taken within so many seconds

Knows: bytes on sockets, uvicorn's protocol class.
Does not know: what is asked for.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from evenflow.core.errors import ConfigError, EvenflowError, InvalidRequestError
from evenflow.engine.openai import error_body
from evenflow.server.errors import (
    BodyTimeoutError,
    HeadersTooLargeError,
    TooManyConnectionsError,
    error_headers,
    status_code,
)

BACKLOG = 2048
"""Connections that wait to be accepted."""

_MAX_HEAD_BYTES = 64 * 1024
_MAX_PIPELINED = 16
_EXCESS_S = 1.0
"""Seconds that a connection beyond the limit gets, so that it can be told why it is refused."""

_LINGER_S = 2.0
_UNREAD_S = 60
"""Seconds after which a client that takes none of what was written to it is cut off."""


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1, with bounds on what may come before a request is known.

    Args:
        max_connections: most that may be open; requests on further ones are refused.
        head_timeout_s: for the request line and all headers, from the first moment.
        arguments: uvicorn's.
    """

    def __init__(self, *, max_connections: int, head_timeout_s: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._refusal: EvenflowError = InvalidRequestError("this is not a request in HTTP/1.1")
        self._max_connections = max_connections
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._num_head_bytes = 0
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; not for long when there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            self._refusal = TooManyConnectionsError(
                "too many connections are open",
                retry_after_s=1.0,
                why=f"the limit is {self._max_connections}",
                fix="Use fewer at once, or start the server with a larger --max-connections",
            )
            self._head_timeout_s = _EXCESS_S
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait, and let the request that runs know."""
        self._stop_waiting()
        self._give_up_answer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, unless it is a head without end."""
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._head_timer is not None and self._num_head_bytes > _MAX_HEAD_BYTES:
            why = f"the limit is {_MAX_HEAD_BYTES} bytes"
            self._refuse(HeadersTooLargeError("the request's headers are too large", why=why))

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of the head."""
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many requests before the first answer")
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """Hand the request on."""
        self._stop_waiting()
        if isinstance(self._refusal, TooManyConnectionsError):
            raise ConnectionRefusedError
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser, or a callback of it, did not take."""
        self._refuse(self._refusal)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _give_up_answer(self) -> bool:
        """Write no more of the answer that is being written; return whether there is any.

        uvicorn itself looks at the last request that it has read, which may wait for its turn.
        """
        cycle = self._running
        if cycle is None or cycle.response_complete:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return True

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._num_head_bytes = 0
            late = BodyTimeoutError("the request's headers did not arrive in time")
            self._head_timer = self.loop.call_later(self._head_timeout_s, self._refuse, late)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: EvenflowError) -> None:
        """Say what is wrong, unless an answer is on its way, and hang up."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if not self._give_up_answer():
            status = HTTPStatus(status_code(error))
            body = msgspec.json.encode({"error": error_body(error)})
            headers = error_headers(error) | {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
            }
            lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()


class LingeringClose:
    """Hangs up on those who are answered before they have sent their whole body.

    Reading the rest could take for ever. Closing at once would have the kernel throw the answer
    away with what is unread, so some seconds are spent on reading first.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and see how far its body is when it is answered."""
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        is_whole = False
        hangs_up = False

        async def listen() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = not message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            nonlocal hangs_up
            if message["type"] == "http.response.start" and not is_whole:
                hangs_up = True
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            if not (hangs_up and is_last):
                await send(message)
                return
            await send({**message, "more_body": True})
            await linger()
            await send({"type": "http.response.body"})

        async def linger() -> None:
            try:
                async with asyncio.timeout(_LINGER_S):
                    while not is_whole:
                        await listen()
            except TimeoutError:
                pass

        await self._app(scope, listen, answer)


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def listen(host: str, port: int) -> socket.socket:
    """Open a port, so that a taken one is known at once.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":
            # Connections inherit it; elsewhere only the system's own patience ends them.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_S * 1000)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}",
            why=str(error),
            fix="Choose another --port (0 takes a free one) or another --host",
        ) from error
    return listener
