"""The server's state as one JSON object: what `/ui/state` and `/ui/events` send and `top` shows.

Every number is read from the instruments behind `/metrics`, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from evenflow.engine.explain_store import EndedCompletion
from evenflow.engine.process.messages import Snapshot, Switching
from evenflow.server.metrics import ServerMetrics
from evenflow.server.windows import LatencyWindow, RateWindow

MAX_LIVE_REQUESTS = 200
MAX_ENDED_REQUESTS = 40


def live_state(
    metrics: ServerMetrics,
    *,
    now_s: float,
    model: str,
    version: str,
    is_draining: bool,
    block_size: int,
    live: Sequence[Mapping[str, object]],
    ended: Iterable[EndedCompletion],
) -> dict[str, object]:
    """Build the object.

    Args:
        metrics: where the numbers are.
        now_s: on the clock of the engine's snapshots.
        model: its name.
        version: evenflow's.
        is_draining: whether new requests are refused.
        block_size: tokens per KV block.
        live: unfinished requests, as the engine lists them; the first ones are passed on.
        ended: the last requests that ended, the newest first.
    """
    counts, snapshot = metrics.counts, metrics.snapshot
    return {
        "at_s": now_s,
        "uptime_s": now_s - metrics.started_s,
        "model": model,
        "version": version,
        "paused": snapshot is not None and snapshot.is_paused,
        "draining": is_draining,
        "requests": _requests(metrics),
        "tenants": _tenants(metrics, now_s),
        "jain_index": counts.tenants.jain_index.values.get(()),
        "service_gap_tokens": counts.tenants.service_gap.values.get(()),
        "kv": None if snapshot is None else _memory(snapshot, block_size),
        "throughput": {
            "prompt_tokens_per_s": _rate(metrics.prompt_rate, now_s),
            "generation_tokens_per_s": _rate(metrics.generation_rate, now_s),
            "steps_per_s": _rate(metrics.step_rate, now_s),
        },
        "latency": {
            "ttft_ms": _percentiles_ms(metrics.ttft, now_s),
            "itl_ms": _percentiles_ms(metrics.itl, now_s),
            "e2e_ms": _percentiles_ms(metrics.e2e, now_s),
        },
        "step_ms": _step_ms(snapshot),
        "preemptions": int(counts.memory.preemptions.total),
        "switching": None if snapshot is None else _switching(snapshot.switching),
        "live": list(live[:MAX_LIVE_REQUESTS]),
        "ended": [_ended(completion) for completion in ended],
    }


def _requests(metrics: ServerMetrics) -> dict[str, int]:
    counts = metrics.counts
    ended = counts.requests.finished.values
    failed = int(ended.get(("error",), 0) + ended.get(("timeout",), 0))
    aborted = int(ended.get(("abort",), 0))
    return {
        "running": int(sum(counts.requests.running.values.values())),
        "waiting": int(sum(counts.requests.waiting.values.values())),
        "finished": int(counts.requests.finished.total) - failed - aborted,
        "failed": failed,
        "aborted": aborted,
        "rejected": int(counts.requests.rejected.total),
    }


def _ended(completion: EndedCompletion) -> dict[str, object]:
    metrics = completion.metrics
    return {
        "id": completion.id,
        "tenant": metrics.tenant_id,
        "status": completion.finish_reason,
        "num_prompt_tokens": metrics.num_prompt_tokens,
        "num_output_tokens": metrics.num_output_tokens,
        "num_preemptions": metrics.num_preemptions,
        "e2e_s": metrics.finished_s - metrics.arrival_s,
    }


def _tenants(metrics: ServerMetrics, now_s: float) -> list[dict[str, object]]:
    counts = metrics.counts
    waiting = _by_tenant(counts.requests.waiting.values, position=1)
    rejected = _by_tenant(counts.requests.rejected.values, position=1)
    rates = metrics.generation_rate.per_second(now_s)
    seen = {id_ for (id_,) in (*counts.tenants.running.values, *counts.requests.submitted.values)}
    return [
        {
            "id": id_,
            "weight": metrics.weight_of(id_),
            "running": int(counts.tenants.running.values.get((id_,), 0)),
            "waiting": int(waiting.get(id_, 0)),
            "service_tokens": counts.tenants.service.values.get((id_,), 0.0),
            "requests": int(counts.requests.submitted.values.get((id_,), 0)),
            "tokens_per_s": rates.get((id_,), 0.0),
            "slo_attainment": {
                slo: counts.tenants.slo_attainment.values.get((id_, slo))
                for slo in ("ttft", "tpot")
            },
            "rejected": int(rejected.get(id_, 0)),
        }
        for id_ in sorted(seen | rejected.keys())
    ]


def _by_tenant(values: Mapping[tuple[str, ...], float], position: int) -> dict[str, float]:
    """Add up the values of each tenant, whose name is the label at `position`."""
    sums: dict[str, float] = {}
    for labels, value in values.items():
        sums[labels[position]] = sums.get(labels[position], 0.0) + value
    return sums


def _memory(snapshot: Snapshot, block_size: int) -> dict[str, object]:
    kv = snapshot.kv
    return {
        "num_blocks": kv.num_blocks,
        "used": kv.num_used,
        "free": kv.num_free,
        "reserved": kv.num_reserved,
        "evictable": kv.num_evictable,
        "cached": kv.num_cached,
        "pinned": kv.num_pinned,
        "usage_ratio": kv.num_used / kv.num_blocks,
        "block_size": block_size,
        "mean_extent_blocks": kv.mean_extent_blocks,
        "prefix_hit_ratio": kv.num_hit_tokens / max(1, kv.num_query_tokens),
    }


def _switching(now: Switching) -> dict[str, object]:
    return {
        "swapped": now.num_swapped,
        "arriving": now.num_arriving,
        "tiers": [
            {"name": tier.tier, "num_blocks": tier.num_blocks, "kept": tier.num_kept}
            for tier in now.tiers
        ],
    }


def _rate(window: RateWindow, now_s: float) -> float:
    return sum(window.per_second(now_s).values())


def _percentiles_ms(window: LatencyWindow, now_s: float) -> dict[str, float | None]:
    recent = window.percentiles(now_s)
    if recent is None:
        return {"p50": None, "p90": None, "p99": None}
    return {name: 1e3 * value_s for name, value_s in asdict(recent).items()}


def _step_ms(snapshot: Snapshot | None) -> dict[str, float | None]:
    """Return the mean time of each verb over the last snapshot's steps."""
    steps = snapshot.steps if snapshot else []
    if not steps:
        return dict.fromkeys(("schedule", "execute", "update", "emit"))
    ms = 1e3 / len(steps)
    return {
        "schedule": ms * sum(step.schedule_s for step in steps),
        "execute": ms * sum(step.execute_s for step in steps),
        "update": ms * sum(step.update_s for step in steps),
        "emit": ms * sum(step.emit_s for step in steps),
    }
