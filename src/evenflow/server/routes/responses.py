"""`/v1/responses`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from evenflow.core.errors import EvenflowError
from evenflow.core.ids import TenantId
from evenflow.engine.openai import CHAT
from evenflow.server.endpoint import Endpoint, Shared
from evenflow.server.errors import NotFoundError
from evenflow.server.generation import Generation
from evenflow.server.http import JSONBytes, event
from evenflow.server.responses import (
    ResponsesRequest,
    ResponsesStream,
    ResponseStore,
    parse_request,
    response_object,
)
from evenflow.server.routes.answers import answer
from evenflow.server.schemas import json_body
from evenflow.server.serving import Received

routes = APIRouter(tags=["text"])


@routes.post("/v1/responses", openapi_extra=json_body("ResponsesRequest"))
async def create_response(request: Request, shared: Shared) -> Response:
    """Answer a conversation, which may continue that of a stored response."""
    received = await shared.receive(request)
    owner = _owner(request, shared)
    asked = parse_request(received.body, partial(shared.responses.get, owner))
    # The conversation may be much longer than the body that continues it.
    num_bytes = len(msgspec.json.encode(asked.chat))
    form = _ResponsesForm(asked, shared.responses, owner)
    in_chat = Received(received.caller, asked.chat, num_bytes)
    return await answer(shared.serving, request, CHAT, in_chat, form)


@routes.get("/v1/responses/{response_id}")
async def retrieve_response(response_id: str, request: Request, shared: Shared) -> Response:
    """Return a stored response."""
    stored = shared.responses.get(_owner(request, shared), response_id)
    if stored is None:
        raise _unknown(response_id)
    return JSONBytes(stored.response)


@routes.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, request: Request, shared: Shared) -> dict[str, Any]:
    """Forget a stored response."""
    if not shared.responses.delete(_owner(request, shared), response_id):
        raise _unknown(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


def _owner(request: Request, shared: Endpoint) -> TenantId:
    """Return whose stored responses a request sees: not the body's `user`'s, which not all name."""
    return shared.door.caller(request, None).tenant_id


def _unknown(response_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no response {response_id[:200]!r}",
        why="it was never stored, was deleted, or has made room for newer ones",
    )


class _ResponsesForm:
    """The Responses API's form; keeps the answer where that is wanted.

    Args:
        asked: the request.
        store: keeps responses.
        owner: for whom.
    """

    id_prefix = "resp_"

    def __init__(self, asked: ResponsesRequest, store: ResponseStore, owner: TenantId) -> None:
        self._asked = asked
        self._store = store
        self._owner = owner

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the response object."""
        response = response_object(self._asked, body, body["id"])
        self._keep(response)
        return response

    async def events(self, generation: Generation) -> AsyncGenerator[bytes]:
        """Write the events of a stream."""
        stream = ResponsesStream(
            self._asked,
            generation.request_id,
            created=generation.created,
            model=generation.model_name,
        )
        yield _written(stream.start())
        try:
            async for chunks in generation.chunks():
                yield _written(caused for chunk in chunks for caused in stream.push(chunk))
        except EvenflowError as error:
            yield _written(stream.fail(str(error)))
            return
        ending = stream.finish()
        self._keep(stream.response)
        yield _written(ending)

    def _keep(self, response: dict[str, Any]) -> None:
        if self._asked.is_stored:
            self._store.put(self._owner, self._asked.stored(response))


def _written(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(event(each, each["type"]) for each in events)
