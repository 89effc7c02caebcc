"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from evenflow.core.errors import EvenflowError
from evenflow.engine.openai import CHAT, COMPLETIONS, error_body
from evenflow.server.endpoint import Shared
from evenflow.server.generation import ID_PREFIXES, Generation
from evenflow.server.http import DONE, event
from evenflow.server.routes.answers import answer
from evenflow.server.schemas import json_body

routes = APIRouter(tags=["text"])


@routes.post(CHAT, openapi_extra=json_body("ChatCompletionRequest"))
async def create_chat_completion(request: Request, shared: Shared) -> Response:
    """Answer a conversation."""
    received = await shared.receive(request)
    return await answer(shared.serving, request, CHAT, received, _OwnForm(CHAT))


@routes.post(COMPLETIONS, openapi_extra=json_body("CompletionRequest"))
async def create_completion(request: Request, shared: Shared) -> Response:
    """Complete a text."""
    received = await shared.receive(request)
    return await answer(shared.serving, request, COMPLETIONS, received, _OwnForm(COMPLETIONS))


class _OwnForm:
    """OpenAI's form, in which the engine's answers are.

    Args:
        url: whose answer it is.
    """

    def __init__(self, url: str) -> None:
        self.id_prefix = ID_PREFIXES[url]

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body as it is."""
        return body

    async def events(self, generation: Generation) -> AsyncGenerator[bytes]:
        """Write the chunks as they come."""
        try:
            async for chunks in generation.chunks():
                yield b"".join(map(event, chunks))
        except EvenflowError as error:
            # The status is sent already; OpenAI's clients raise on an event with an error.
            yield event({"error": error_body(error)})
        yield DONE
