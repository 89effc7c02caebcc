"""What tenants do about their own requests: ask where the time goes, change how urgent one is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from evenflow.engine.openai import parse_priority
from evenflow.fairness.keys import Identity
from evenflow.server.endpoint import Endpoint, Shared
from evenflow.server.errors import NotFoundError
from evenflow.server.fields import known_fields
from evenflow.server.schemas import json_body

routes = APIRouter(prefix="/v1/requests", tags=["requests"])


@routes.get("/{request_id}/explain")
async def explain(request_id: str, request: Request, shared: Shared) -> dict[str, Any]:
    """Tell where the time of a request went, be it running or done."""
    identity = shared.door.identify(request)
    explanation = await shared.serving.explain(request_id)
    if explanation is None or not _may_see(shared, identity, explanation["tenant"]):
        raise NotFoundError(
            f"there is no request {request_id[:200]!r}",
            why="it never was, another tenant sent it, or it ended long ago",
            fix="Use the id in the response's `id` field or its X-Request-Id header",
        )
    return explanation


@routes.post("/{request_id}/priority", openapi_extra=json_body("PriorityRequest"))
async def set_priority(request_id: str, request: Request, shared: Shared) -> dict[str, Any]:
    """Change how urgent a request is while it waits or runs."""
    identity = shared.door.identify(request)
    tenant_id = shared.serving.books.owner(request_id)
    if tenant_id is None or not _may_see(shared, identity, tenant_id):
        raise NotFoundError(
            f"there is no live request {request_id[:200]!r}",
            why="it never was, another tenant sent it, or it has ended",
            fix="Use the id in the response's `id` field or its X-Request-Id header",
        )
    fields = known_fields(await shared.read(request), frozenset({"priority"}))
    priority = parse_priority(fields.get("priority"))
    shared.serving.engine.set_priority(request_id, priority)
    return {"id": request_id, "priority": priority}


def _may_see(shared: Endpoint, identity: Identity | None, tenant_id: str) -> bool:
    return identity is None or shared.door.may_see(identity, tenant_id)
