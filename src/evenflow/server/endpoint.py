"""What every endpoint begins with: a body within its limits, and a caller who may send it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from evenflow.server.auth import Door
from evenflow.server.batches import BatchStore, BatchWorker, FileStore
from evenflow.server.http import decode_json, read_body
from evenflow.server.responses import ResponseStore
from evenflow.server.serving import Received, Serving


@dataclass(slots=True, frozen=True)
class Endpoint:
    """What routes share.

    Attributes:
        serving: takes requests to the engine.
        door: decides who may do what.
        files: uploaded files.
        batches: batches of requests.
        batch_worker: answers them.
        responses: answers that later requests may continue.
    """

    serving: Serving
    door: Door
    files: FileStore
    batches: BatchStore
    batch_worker: BatchWorker
    responses: ResponseStore

    async def read(self, request: Request) -> Any:
        """Return the decoded body; null for an empty one.

        Raises:
            InvalidRequestError: it is too large, too slow, or no JSON.
        """
        raw = await self._read(request)
        return decode_json(raw) if raw else None

    async def receive(self, request: Request) -> Received:
        """Return who asks for what. The key is checked before the body is read.

        Raises:
            InvalidRequestError: the key is wrong, a header is malformed, or the body is.
        """
        self.door.identify(request)
        raw = await self._read(request)
        body = decode_json(raw) if raw else None
        return Received(self.door.caller(request, body), body, len(raw))

    async def _read(self, request: Request) -> bytes:
        limits = self.serving.config.server
        return await read_body(request, limits.max_request_bytes, limits.body_timeout)


async def shared(request: Request) -> Endpoint:
    """Return what the app was built with. FastAPI would run it on a thread were it no coroutine."""
    endpoint: Endpoint = request.app.state.endpoint
    return endpoint


Shared = Annotated[Endpoint, Depends(shared)]
"""The type of the parameter through which a route gets it."""


async def only_operators(request: Request) -> None:
    """Let only those with an admin key pass."""
    (await shared(request)).door.check_admin(request)
