"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from evenflow.core.errors import EvenflowError
from evenflow.engine.openai import CHAT, COMPLETIONS, error_body
from evenflow.server.endpoint import Endpoint, Shared
from evenflow.server.generation import Generation
from evenflow.server.http import (
    CLIENT_CLOSED_REQUEST,
    DONE,
    EventStream,
    JSONBytes,
    event,
    unless_disconnected,
)
from evenflow.server.schemas import json_body

routes = APIRouter(tags=["text"])


@routes.post(CHAT, openapi_extra=json_body("ChatCompletionRequest"))
async def create_chat_completion(request: Request, shared: Shared) -> Response:
    """Answer a conversation."""
    return await _generate(shared, CHAT, request)


@routes.post(COMPLETIONS, openapi_extra=json_body("CompletionRequest"))
async def create_completion(request: Request, shared: Shared) -> Response:
    """Complete a text."""
    return await _generate(shared, COMPLETIONS, request)


async def _generate(shared: Endpoint, url: str, request: Request) -> Response:
    received = await shared.receive(request)
    start = Generation.start(shared.serving, url, received)
    generation = await unless_disconnected(request, start)
    if generation is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    headers = {"X-Request-Id": generation.request_id}
    if generation.parsed.stream:
        return EventStream(_events(generation), headers)
    answer = await unless_disconnected(request, _whole(generation))
    if answer is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONBytes(answer, headers=headers)


async def _whole(generation: Generation) -> dict[str, Any]:
    try:
        return await generation.result()
    finally:
        generation.abandon()


async def _events(generation: Generation) -> AsyncGenerator[bytes]:
    try:
        async for chunks in generation.chunks():
            yield b"".join(map(event, chunks))
    except EvenflowError as error:
        # The status is sent already; OpenAI's clients raise on an event with an error.
        yield event({"error": error_body(error)})
    finally:
        generation.abandon()
    yield DONE
