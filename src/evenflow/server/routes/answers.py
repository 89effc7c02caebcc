"""From a body in the engine's terms to a response: what all endpoints for text have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from fastapi import Request, Response

from evenflow.server.generation import Generation
from evenflow.server.http import (
    CLIENT_CLOSED_REQUEST,
    EventStream,
    JSONBytes,
    unless_disconnected,
)
from evenflow.server.serving import Received, Serving


class Form(Protocol):
    """How an API writes the answer to one request.

    Attributes:
        id_prefix: what the answer's id begins with.
    """

    id_prefix: str

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """Turn our response body into the API's."""
        ...

    def events(self, generation: Generation) -> AsyncGenerator[bytes]:
        """Write a stream. An error on the way is its last event."""
        ...


async def answer(
    serving: Serving, request: Request, url: str, received: Received, form: Form
) -> Response:
    """Generate what a request asks for, whole or as a stream, unless its client goes away.

    Args:
        serving: what all requests share.
        request: the request as it came.
        url: whose body `received` has, `CHAT` or `COMPLETIONS`.
        received: the request in that form.
        form: how to answer.

    Raises:
        EvenflowError: the request is wrong, cannot be taken now, or could not be finished.
    """
    start = Generation.start(serving, url, received, form.id_prefix)
    generation = await unless_disconnected(request, start)
    if generation is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    # OpenAI's clients look for the first, Anthropic's for the second.
    headers = {"X-Request-Id": generation.request_id, "Request-Id": generation.request_id}
    if generation.parsed.stream:
        return EventStream(form.events(generation), headers, on_close=generation.abandon)
    try:
        body = await unless_disconnected(request, generation.result())
    finally:
        generation.abandon()
    if body is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONBytes(form.whole(body), headers=headers)
