"""The object behind `/ui/state` and `top`, against `/metrics`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from evenflow.engine.explain_store import EndedCompletion
from evenflow.engine.outputs import RequestMetrics
from evenflow.server.live_state import MAX_LIVE_REQUESTS, live_state
from evenflow.server.metrics import ServerMetrics
from support.metrics_traffic import Traffic, ended_completion


def new_metrics() -> ServerMetrics:
    return ServerMetrics(started_s=100.0, version="1.0", config={})


def state_of(
    metrics: ServerMetrics,
    now_s: float,
    num_live: int = 0,
    ended: Sequence[EndedCompletion] = (),
) -> dict[str, object]:
    return live_state(
        metrics,
        now_s=now_s,
        model="m",
        version="1.0",
        is_draining=False,
        block_size=16,
        live=[{"id": str(number)} for number in range(num_live)],
        ended=ended,
    )


def test_live_state_agrees_with_the_counts_when_there_was_traffic() -> None:
    metrics = new_metrics()
    traffic = Traffic(metrics)
    for quarter in range(1, 41):
        traffic.tick(100.0 + quarter / 4)
    state = state_of(metrics, 110.0)
    counts = metrics.counts
    assert state["uptime_s"] == 10.0
    assert state["requests"] == {
        "running": 4,
        "waiting": 4,
        "finished": counts.requests.finished.total,
        "failed": 0,
        "aborted": 0,
        "rejected": counts.requests.rejected.total,
    }
    blue, green = state["tenants"]
    assert blue["id"] == "blue"
    assert blue["service_tokens"] == 1200.0
    assert blue["requests"] == 40
    assert blue["rejected"] == 40
    assert blue["tokens_per_s"] == pytest.approx(20.0)
    assert blue["slo_attainment"] == {"ttft": 1.0, "tpot": 1.0}
    assert green["slo_attainment"] == {"ttft": 0.0, "tpot": 1.0}
    assert state["throughput"]["generation_tokens_per_s"] == pytest.approx(40.0)
    assert state["throughput"]["prompt_tokens_per_s"] == pytest.approx(2 * 64 * 4)
    assert state["throughput"]["steps_per_s"] == pytest.approx(32.0)
    assert state["latency"]["ttft_ms"]["p50"] == pytest.approx(750.0, rel=0.05)
    assert state["latency"]["e2e_ms"]["p99"] == pytest.approx(2000.0, rel=0.05)
    assert state["step_ms"] == {
        "schedule": pytest.approx(0.2),
        "execute": pytest.approx(30.0),
        "update": pytest.approx(0.1),
        "emit": pytest.approx(0.1),
    }
    assert state["preemptions"] == 40
    assert state["switching"] == {
        "swapped": 3,
        "arriving": 1,
        "tiers": [
            {"name": "host", "num_blocks": 200, "kept": 50},
            {"name": "disk", "num_blocks": 1000, "kept": 10},
        ],
    }
    kv = state["kv"]
    assert kv["free"] + kv["used"] + kv["reserved"] + kv["evictable"] == kv["num_blocks"]


def test_live_state_tells_endings_apart_when_some_failed() -> None:
    metrics = new_metrics()
    for status in ("stop", "length", "abort", "abort", "error", "timeout"):
        metrics.on_finished(*ended_completion(100.0, status=status), {})
    requests = state_of(metrics, 101.0)["requests"]
    assert (requests["finished"], requests["aborted"], requests["failed"]) == (2, 2, 2)


def test_live_state_is_complete_json_when_nothing_has_happened() -> None:
    state = json.loads(json.dumps(state_of(new_metrics(), 100.0)))
    assert state["kv"] is state["switching"] is None
    assert state["latency"]["itl_ms"] == {"p50": None, "p90": None, "p99": None}
    assert state["step_ms"] == dict.fromkeys(("schedule", "execute", "update", "emit"))
    assert state["tenants"] == []


def test_live_state_names_a_tenant_when_it_was_only_rejected() -> None:
    metrics = new_metrics()
    metrics.on_rejected("red", "queue_full")
    (tenant,) = state_of(metrics, 101.0)["tenants"]
    assert (tenant["id"], tenant["rejected"], tenant["requests"]) == ("red", 1, 0)


def test_live_state_passes_on_the_first_requests_when_there_are_many() -> None:
    live = state_of(new_metrics(), 101.0, num_live=MAX_LIVE_REQUESTS + 50)["live"]
    assert [request["id"] for request in live] == [str(n) for n in range(MAX_LIVE_REQUESTS)]


def test_live_state_tells_how_requests_ended() -> None:
    metrics = RequestMetrics(
        arrival_s=100.0,
        first_token_s=100.5,
        finished_s=102.0,
        num_output_tokens=7,
        num_cached_tokens=0,
        num_preemptions=1,
        num_prompt_tokens=30,
        tenant_id="blue",
    )
    ended = EndedCompletion("cmpl-1", "stop", metrics, ())
    assert state_of(new_metrics(), 103.0, ended=[ended])["ended"] == [
        {
            "id": "cmpl-1",
            "tenant": "blue",
            "status": "stop",
            "num_prompt_tokens": 30,
            "num_output_tokens": 7,
            "num_preemptions": 1,
            "e2e_s": 2.0,
        }
    ]
