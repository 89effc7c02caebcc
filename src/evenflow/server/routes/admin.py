"""What operators do: pause, resume, drain, abort, flush, list, check, and keep sessions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from evenflow.core.errors import EvenflowError, InvalidRequestError
from evenflow.core.ids import DEFAULT_TENANT, TenantId
from evenflow.engine.openai import error_body
from evenflow.server.endpoint import Endpoint, Shared, only_operators
from evenflow.server.errors import NotFoundError
from evenflow.server.fields import known_fields
from evenflow.server.http import RowStream
from evenflow.server.recording import RowQueue, TrafficRecorder
from evenflow.server.schemas import json_body
from evenflow.server.serving import Serving

_DEFAULT_TTL_S = 300.0
_MAX_TTL_S = 86400
_MAX_LISTED = 10_000
_BLANK_LINE_S = 1.0
"""How long a listener hears nothing at most: so both sides notice when the other one is gone."""

routes = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(only_operators)])


@routes.post("/pause")
async def pause(shared: Shared) -> dict[str, Any]:
    """Take no more steps; requests keep their place and their memory."""
    await shared.serving.engine.call("pause")
    return {"paused": True}


@routes.post("/resume")
async def resume(shared: Shared) -> dict[str, Any]:
    """Take steps again, and requests, if they were paused or drained."""
    serving = shared.serving
    serving.is_draining = serving.is_ending
    await serving.engine.call("resume")
    return {"paused": False, "draining": serving.is_draining}


@routes.post("/drain")
async def drain(shared: Shared) -> dict[str, Any]:
    """Take no more requests; those that were taken go on. `/admin/resume` undoes it."""
    shared.serving.is_draining = True
    return {"draining": True, "num_live_requests": len(shared.serving.books)}


@routes.post("/abort", openapi_extra=json_body("AbortRequest"))
async def abort(request: Request, shared: Shared) -> dict[str, Any]:
    """End one request, or all of them."""
    fields = known_fields(await shared.read(request), frozenset({"request_id", "all"}))
    request_id = fields.get("request_id")
    if fields.get("all") is True:
        num_aborted = len(shared.serving.books)
        shared.serving.engine.abort_all("aborted by an operator")
        return {"num_aborted": num_aborted}
    if not isinstance(request_id, str):
        raise InvalidRequestError(
            "request_id must name a request", param="request_id", fix='Or send {"all": true}'
        )
    if request_id not in shared.serving.books:
        raise NotFoundError(f"there is no live request {request_id[:200]!r}", param="request_id")
    shared.serving.engine.abort(request_id, "aborted by an operator")
    return {"num_aborted": 1}


@routes.post("/flush_prefix_cache")
async def flush_prefix_cache(shared: Shared) -> dict[str, Any]:
    """Forget all cached KV that no request holds and no session has pinned, on all tiers."""
    await shared.serving.engine.call("flush_prefix_cache")
    return {"flushed": True}


@routes.post("/check_integrity")
async def check_integrity(shared: Shared) -> dict[str, Any]:
    """Recount the engine's queues and memory, and the queue at the door, by brute force."""
    await shared.serving.engine.call("check_integrity")
    shared.serving.books.admission.check_integrity()
    return {"sound": True}


@routes.get("/requests")
async def list_requests(shared: Shared) -> dict[str, Any]:
    """List live requests, oldest first."""
    return {"requests": await shared.serving.engine.call("list_requests", limit=_MAX_LISTED)}


@routes.get("/trace")
async def trace(shared: Shared) -> Response:
    """Stream a row of the trace schema for each request that comes and ends from now on."""
    return RowStream(_recorded(shared.serving))


@routes.get("/sessions")
async def list_sessions(shared: Shared) -> dict[str, Any]:
    """List sessions, and what they keep where."""
    return {"sessions": await shared.serving.engine.call("list_sessions")}


@routes.post("/sessions", openapi_extra=json_body("SessionRequest"))
async def open_session(request: Request, shared: Shared) -> Any:
    """Open a session, whose requests' KV is kept for the next one."""
    fields = known_fields(
        await shared.read(request) or {}, frozenset({"session_id", "tenant", "ttl_s"})
    )
    return await shared.serving.engine.call(
        "open_session",
        tenant_id=_tenant(shared, fields),
        ttl_s=_ttl(fields) or _DEFAULT_TTL_S,
        session_id=_text(fields, "session_id"),
    )


@routes.post("/sessions/{session_id}/pin", openapi_extra=json_body("PinRequest"))
async def pin_session(session_id: str, request: Request, shared: Shared) -> Any:
    """Keep a session's KV on the device for its time to live from now on."""
    fields = known_fields(await shared.read(request) or {}, frozenset({"tenant", "ttl_s"}))
    return await shared.serving.engine.call(
        "pin_session",
        tenant_id=_tenant(shared, fields),
        session_id=session_id,
        ttl_s=_ttl(fields),
    )


@routes.delete("/sessions/{session_id}")
async def release_session(
    session_id: str, shared: Shared, tenant: str = DEFAULT_TENANT
) -> dict[str, Any]:
    """Give back what a session keeps, and close it."""
    await shared.serving.engine.call(
        "release_session",
        tenant_id=_tenant(shared, {"tenant": tenant}),
        session_id=session_id,
    )
    return {"id": session_id, "released": True}


async def _recorded(serving: Serving) -> AsyncGenerator[bytes]:
    """Yield rows as they come, a blank line to begin with and whenever there are none."""
    queue = RowQueue()
    with serving.books.recorded(TrafficRecorder(queue.write, serving.clock.now_s())):
        while not (serving.stopping.is_set() or queue.is_overrun):
            yield queue.take() or b"\n"
            await queue.wait(_BLANK_LINE_S)
    yield queue.take()
    if queue.is_overrun:
        slow = EvenflowError(
            "the recording ends here", why="rows were not read as fast as requests ended"
        )
        slow.code = "listener_too_slow"
        yield msgspec.json.encode({"error": error_body(slow)}) + b"\n"


def _tenant(shared: Endpoint, fields: dict[str, Any]) -> TenantId:
    return shared.serving.directory.canonical(_text(fields, "tenant") or DEFAULT_TENANT)


def _ttl(fields: dict[str, Any]) -> float | None:
    value = fields.get("ttl_s")
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= _MAX_TTL_S:
        raise InvalidRequestError(
            f"ttl_s must be a number of seconds above 0 and up to {_MAX_TTL_S}", param="ttl_s"
        )
    return float(value)


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= 128):
        raise InvalidRequestError(f"{name} must be a string of 1 to 128 characters", param=name)
    return value
