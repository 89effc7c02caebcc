"""What an operator can have done to a running engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evenflow.core.ids import TenantId
from evenflow.core.request import Request
from evenflow.core.status import RequestStatus
from evenflow.engine.engine import Engine


def pause(engine: Engine, now_s: float) -> None:  # noqa: ARG001  # the signature of all
    """Take no more steps. Requests stay where they are, with their memory."""
    engine.pause()


def resume(engine: Engine, now_s: float) -> None:  # noqa: ARG001
    """Take steps again."""
    engine.resume()


def flush_prefix_cache(engine: Engine, now_s: float) -> None:  # noqa: ARG001
    """Forget all cached content that no request holds and no session has pinned, on all tiers."""
    engine.scheduler.kv.reset_prefix_cache()


def check_integrity(engine: Engine, now_s: float) -> None:  # noqa: ARG001
    """Recount queues and memory by brute force.

    Raises:
        IntegrityError: an invariant does not hold.
    """
    engine.scheduler.check_integrity()


def list_requests(engine: Engine, now_s: float, limit: int) -> list[dict[str, Any]]:
    """Return the oldest `limit` live completions."""
    oldest = sorted(engine.live_requests, key=lambda request: request.sequence_number)[:limit]
    return [_describe(engine, request, now_s) for request in oldest]


def _describe(engine: Engine, request: Request, now_s: float) -> dict[str, Any]:
    last = request.events[-1]
    waits = request.status is not RequestStatus.RUNNING
    return {
        "id": request.request_id,
        "tenant": request.tenant_id,
        "status": request.status.name.lower(),
        "priority": request.priority,
        "num_prompt_tokens": request.num_prompt_tokens,
        "num_output_tokens": request.num_output_tokens,
        "num_computed_tokens": request.num_computed_tokens,
        "num_blocks": engine.scheduler.kv.num_held_blocks(request.request_id),
        "num_preemptions": request.num_preemptions,
        "age_s": now_s - request.arrival_s,
        "waiting_for": last.cause if waits else None,
    }


def explain(engine: Engine, now_s: float, request_id: str) -> dict[str, Any] | None:  # noqa: ARG001
    """Tell where the time of a live completion went so far; None if it is not live."""
    explanation = engine.explain(request_id)
    return None if explanation is None else explanation.to_json()


def block_map(engine: Engine, now_s: float) -> dict[str, Any]:  # noqa: ARG001
    """Tell who holds which KV block, as runs of neighbouring blocks."""
    kv = engine.scheduler.kv
    requests: dict[str, int] = {}
    tenants: dict[str, int] = {}
    runs = []
    for start, length, state, request_id in kv.block_map():
        owner = engine.scheduler.requests.get(request_id) if request_id is not None else None
        tenant_index = request_index = -1
        if owner is not None:
            tenant_index = tenants.setdefault(owner.tenant_id, len(tenants))
            request_index = requests.setdefault(owner.request_id, len(requests))
        runs.append((start, length, state, tenant_index, request_index))
    return {
        "num_blocks": kv.num_blocks,
        "block_size": kv.block_size,
        "runs": runs,
        "tenants": list(tenants),
        "requests": list(requests),
    }


def list_sessions(engine: Engine, now_s: float) -> list[dict[str, Any]]:
    """Return all sessions."""
    return [engine.sessions.describe(session, now_s) for session in engine.sessions]


def open_session(
    engine: Engine, now_s: float, tenant_id: TenantId, ttl_s: float, session_id: str | None
) -> dict[str, Any]:
    """Begin a session, under a made-up id if none is given."""
    session = engine.sessions.open(tenant_id, ttl_s, session_id)
    return engine.sessions.describe(session, now_s)


def pin_session(
    engine: Engine, now_s: float, tenant_id: TenantId, session_id: str, ttl_s: float | None
) -> dict[str, Any]:
    """Keep a session's KV on the device for its time to live from now on."""
    session = engine.sessions.pin(tenant_id, session_id, now_s, ttl_s)
    return engine.sessions.describe(session, now_s)


def release_session(
    engine: Engine,
    now_s: float,  # noqa: ARG001
    tenant_id: TenantId,
    session_id: str,
) -> None:
    """End a session and let go of what it keeps."""
    engine.sessions.release(tenant_id, session_id)


ADMIN_METHODS: dict[str, Callable[..., Any]] = {
    method.__name__: method
    for method in (
        pause,
        resume,
        flush_prefix_cache,
        check_integrity,
        list_requests,
        explain,
        block_map,
        list_sessions,
        open_session,
        pin_session,
        release_session,
    )
}
"""By the name under which an `AdminCall` asks for it; called with engine, time, and arguments."""
