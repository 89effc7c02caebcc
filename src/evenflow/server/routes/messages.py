"""`/v1/messages`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from fastapi import APIRouter, Request, Response

from evenflow.core.errors import EvenflowError
from evenflow.engine.openai import CHAT
from evenflow.engine.openai import parse_request as parse_chat
from evenflow.server.endpoint import Shared
from evenflow.server.generation import Generation
from evenflow.server.http import event
from evenflow.server.messages import (
    MessagesStream,
    error_body,
    message_object,
    parse_count_request,
    parse_request,
)
from evenflow.server.routes.answers import answer
from evenflow.server.schemas import json_body
from evenflow.server.serving import Model, Received

routes = APIRouter(tags=["text"])


@routes.post("/v1/messages", openapi_extra=json_body("MessagesRequest"))
async def create_message(request: Request, shared: Shared) -> Response:
    """Answer a conversation, in the form of Anthropic's API."""
    received = await shared.receive(request)
    asked = parse_request(received.body)
    # Only now it is known where the body names a user.
    caller = shared.door.caller(request, asked.chat)
    in_chat = Received(caller, asked.chat, received.num_bytes)
    return await answer(shared.serving, request, CHAT, in_chat, _MessagesForm())


@routes.post("/v1/messages/count_tokens", openapi_extra=json_body("CountTokensRequest"))
async def count_tokens(request: Request, shared: Shared) -> dict[str, int]:
    """Count the tokens of a conversation."""
    received = await shared.receive(request)
    chat = parse_count_request(received.body)
    shared.serving.check_model(chat.get("model"))
    return {"input_tokens": await asyncio.to_thread(_count, shared.serving.model, chat)}


def _count(model: Model, chat: dict[str, Any]) -> int:
    limit = model.max_prompt_chars
    parsed = parse_chat(CHAT, chat, model.tokenizer, model.tools, max_prompt_chars=limit)
    return parsed.num_prompt_tokens


class _MessagesForm:
    """Anthropic's form."""

    id_prefix = "msg_"

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the message."""
        return message_object(body, body["id"])

    async def events(self, generation: Generation) -> AsyncGenerator[bytes]:
        """Write the events of a stream."""
        stream = MessagesStream(
            generation.request_id,
            model=generation.model_name,
            num_prompt_tokens=generation.parsed.num_prompt_tokens,
        )
        yield _written(stream.start())
        try:
            async for chunks in generation.chunks():
                yield _written(caused for chunk in chunks for caused in stream.push(chunk))
        except EvenflowError as error:
            yield _written([error_body(error)])
            return
        yield _written(stream.finish())


def _written(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(event(each, each["type"]) for each in events)
