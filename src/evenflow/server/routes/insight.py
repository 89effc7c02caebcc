"""What the server does and how it fares: health, metrics, the dashboard's data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from evenflow.core.errors import EvenflowError
from evenflow.server.endpoint import Shared
from evenflow.server.http import EventStream, JSONBytes, event
from evenflow.server.live_state import MAX_ENDED_REQUESTS, MAX_LIVE_REQUESTS, live_state
from evenflow.server.metrics import CONTENT_TYPE
from evenflow.server.serving import Serving

_FEED_S = 0.5

routes = APIRouter(tags=["insight"])


@routes.get("/ping", include_in_schema=False)
@routes.get("/health")
async def health(shared: Shared) -> Response:
    """Answer 200 while the server can work: it may still be loading, or draining."""
    failure = shared.serving.engine.failure
    if failure is not None:
        raise failure
    return Response(status_code=200)


@routes.get("/ready")
async def ready(shared: Shared) -> Response:
    """Answer 200 when requests are taken, else 503 with what is missing."""
    if shared.serving.is_ready:
        return JSONResponse({"status": "ready"})
    status = "draining" if shared.serving.is_draining else "loading"
    return JSONResponse({"status": status}, status_code=503)


@routes.get("/version")
async def version(shared: Shared) -> dict[str, str]:
    """Name the version that runs."""
    return {"version": shared.serving.version}


@routes.get("/metrics")
async def metrics(shared: Shared) -> Response:
    """Write all metrics in Prometheus's text format."""
    return Response(shared.serving.metrics.render(), media_type=CONTENT_TYPE)


@routes.get("/ui/state")
async def state(request: Request, shared: Shared) -> Response:
    """Return the server's state as the dashboard and `evenflow top` show it."""
    shared.door.check_observer(request)
    return JSONBytes(await _state(shared.serving))


@routes.get("/ui/events")
async def events(request: Request, shared: Shared) -> Response:
    """Stream the server's state, twice a second."""
    shared.door.check_observer(request)
    return EventStream(_feed(shared.serving))


@routes.get("/ui/blocks")
async def blocks(request: Request, shared: Shared) -> Response:
    """Return who holds which KV block."""
    shared.door.check_observer(request)
    return JSONBytes(await shared.serving.engine.call("block_map"))


async def _feed(serving: Serving) -> AsyncGenerator[bytes]:
    with suppress(EvenflowError):  # the engine is gone, and with it what there was to show
        while not serving.stopping.is_set():
            yield event(await _state(serving))
            await asyncio.sleep(_FEED_S)


async def _state(serving: Serving) -> dict[str, object]:
    model = serving.model
    live = await serving.engine.call("list_requests", limit=MAX_LIVE_REQUESTS)
    return live_state(
        serving.metrics,
        now_s=serving.clock.now_s(),
        model=serving.name,
        version=serving.version,
        is_draining=serving.is_draining,
        block_size=model.info.block_size,
        live=live,
        ended=serving.books.explains.newest(MAX_ENDED_REQUESTS),
    )
