"""A server's life without a server: requests of two tenants, told to a `ServerMetrics`."""

from __future__ import annotations

import random
from dataclasses import replace

from evenflow.core.events import EventKind, RequestEvent, WaitReason
from evenflow.core.ids import TenantId
from evenflow.engine.explain import Explanation, explain
from evenflow.engine.outputs import RequestMetrics
from evenflow.engine.process.messages import (
    LinkUse,
    Preemptions,
    Snapshot,
    StepSample,
    Switching,
    TenantState,
    TierUse,
)
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.server.metrics import ServerMetrics

TENANTS = ("blue", "green")
EMPTY_KV = KVCacheManager(num_blocks=100, block_size=16).stats()


def ended_completion(
    arrival_s: float, tenant: str = "blue", status: str = "stop"
) -> tuple[Explanation, RequestMetrics]:
    """Return a completion of five tokens: it waited 0.5 s and was preempted once."""
    kinds = (
        (EventKind.QUEUED, 0.0, 0),
        (EventKind.SCHEDULED, 0.5, 16),
        (EventKind.FIRST_TOKEN, 0.75, 48),
        (EventKind.PREEMPTED, 1.0, 66),
        (EventKind.SWAPPING_IN, 1.125, 0),
        (EventKind.RESUMED, 1.25, 0),
        (EventKind.RECOMPUTED, 1.5, 66),
        (EventKind.FINISHED, 2.0, 68),
    )
    events = [
        RequestEvent(kind, arrival_s + at_s, "", WaitReason.MEMORY, n) for kind, at_s, n in kinds
    ]
    explanation = explain(
        events, request_id="chatcmpl-1", tenant_id=tenant, status=status, arrival_s=arrival_s
    )
    metrics = RequestMetrics(
        arrival_s=arrival_s,
        first_token_s=arrival_s + 0.75,
        finished_s=arrival_s + 2.0,
        num_output_tokens=5,
        num_cached_tokens=16,
        num_preemptions=1,
        num_prompt_tokens=64,
    )
    return explanation, metrics


def snapshot(at_s: float, *, service: dict[str, float], **changes: object) -> Snapshot:
    """Return a snapshot in which every tenant of `service` has requests waiting."""
    state = {
        "at_s": at_s,
        "is_paused": False,
        "tenants": {
            TenantId(tenant): TenantState(2, {"queue": 1, "memory": 1}, tokens)
            for tenant, tokens in service.items()
        },
        "kv": EMPTY_KV,
        "preemptions": [],
        "switching": Switching(),
        "steps": [],
        "num_steps": 0,
        "step_s": {"schedule": 0.0, "execute": 0.0, "update": 0.0, "emit": 0.0},
    }
    return Snapshot(**{**state, **changes})


class Traffic:
    """Feeds a `ServerMetrics` with one quarter of a second of life at a time."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._random = random.Random(0)
        self._num_ticks = 0

    def tick(self, now_s: float) -> None:
        """Let something of everything happen."""
        metrics = self._metrics
        self._num_ticks += 1
        for tenant in TENANTS:
            metrics.on_submitted(tenant, 64)
            metrics.on_first_token(tenant, 0.75)
            for _ in range(4):
                metrics.on_token(tenant, self._random.uniform(0.01, 0.05))
            explanation, times = ended_completion(now_s - 2.0, tenant)
            metrics.on_finished(explanation, times, {"ttft": tenant == "blue", "tpot": True})
            metrics.on_rejected(tenant, "queue_full")
        metrics.on_http("/v1/completions", 200)
        metrics.on_loop_lag(0.002)
        metrics.on_snapshot(self._snapshot(now_s))

    def _snapshot(self, now_s: float) -> Snapshot:
        num_ticks = self._num_ticks
        step = StepSample(0.0002, 0.03, 0.0001, 0.0001, 48, 12, 0.0003)
        return snapshot(
            now_s,
            service={"blue": 30.0 * num_ticks, "green": 10.0 * num_ticks},
            kv=replace(
                EMPTY_KV,
                num_used=60,
                num_free=40,
                num_query_tokens=100 * num_ticks,
                num_hit_tokens=25 * num_ticks,
            ),
            preemptions=[Preemptions("recompute", "memory", TenantId("green"), num_ticks)],
            switching=Switching(
                num_swapped=3,
                num_arriving=1,
                stall_s={"swap_out": 0.01 * num_ticks},
                num_conflicts=num_ticks,
                tiers=[TierUse("host", 200, 50), TierUse("disk", 1000, 10)],
                links=[LinkUse("device_to_host", 4096 * num_ticks, num_ticks, 0.5, 2)],
            ),
            steps=[step] * 8,
            num_steps=8 * num_ticks,
            step_s={
                "schedule": 0.0016 * num_ticks,
                "execute": 0.24 * num_ticks,
                "update": 0.0008 * num_ticks,
                "emit": 0.0008 * num_ticks,
            },
        )
