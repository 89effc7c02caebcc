from __future__ import annotations

import msgspec
import pytest

from evenflow.core.clock import ManualClock
from evenflow.core.events import NUM_DETAILED_EVENTS, EventKind, RequestEvent, WaitReason
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.explain import Explanation, explain
from evenflow.engine.explain_store import ExplainStore
from evenflow.engine.outputs import Delta
from evenflow.scheduling.plan import StepPlan, StepResult
from support.scripted_engine import RecordingExecutor, make_engine


def told(*events: RequestEvent, now_s: float | None = None) -> Explanation:
    return explain(
        events, request_id="r", tenant_id="t", status="stop", arrival_s=10.0, now_s=now_s
    )


def at(kind: EventKind, at_s: float, cause: str = "", **details) -> RequestEvent:
    return RequestEvent(kind, at_s, cause, **details)


def pieces(explanation: Explanation) -> list[tuple[str, float, float]]:
    return [(i.kind.value, i.start_s, i.end_s) for i in explanation.intervals]


FULL_LIFE = [
    at(EventKind.QUEUED, 10.5, "2 others waiting", reason=WaitReason.SEATS),
    at(EventKind.HELD, 11.0, "needs 9 blocks, 4 available", reason=WaitReason.MEMORY),
    at(EventKind.SCHEDULED, 13.0, "16 of 100 tokens already have KV", num_tokens=16),
    at(EventKind.PREFILL_CHUNK, 14.0, num_tokens=64, num_steps=1),
    at(EventKind.FIRST_TOKEN, 14.5, num_tokens=20),
    at(EventKind.PREEMPTED, 16.5, "recompute: x needed a block", num_tokens=110),
    at(EventKind.HELD, 17.0, "all 8 seats are taken", reason=WaitReason.SEATS),
    at(EventKind.RESUMED, 18.0, "96 of 111 tokens already have KV", num_tokens=96),
    at(EventKind.RECOMPUTED, 18.25, num_tokens=15),
    at(EventKind.FINISHED, 20.25, "length limit", num_tokens=121),
]


def test_explain_turns_every_turning_point_into_the_end_of_an_interval() -> None:
    explanation = told(*FULL_LIFE)
    assert pieces(explanation) == [
        ("queued", 0.0, 0.5),
        ("queued", 0.5, 1.0),
        ("held", 1.0, 3.0),
        ("prefill", 3.0, 4.0),
        ("prefill", 4.0, 4.5),
        ("decode", 4.5, 6.5),
        ("preempted", 6.5, 7.0),
        ("preempted", 7.0, 8.0),
        ("recompute", 8.0, 8.25),
        ("decode", 8.25, 10.25),
    ]
    assert explanation.latency_s == 10.25
    details = [i.detail for i in explanation.intervals if i.detail]
    assert details == [
        "64 tokens",
        "20 tokens",
        "10 tokens, 200.0 ms each",
        "15 tokens",
        "10 tokens, 200.0 ms each",
    ]
    causes = [i.cause for i in explanation.intervals]
    assert causes[2] == "needs 9 blocks, 4 available"
    assert causes[7] == "all 8 seats are taken"


def test_explain_tells_recompute_from_prefill_when_a_prompt_was_lost_half_way() -> None:
    explanation = told(
        at(EventKind.QUEUED, 10.0),
        at(EventKind.SCHEDULED, 10.0),
        at(EventKind.PREFILL_CHUNK, 11.0, num_tokens=32, num_steps=1),
        at(EventKind.PREEMPTED, 12.0, num_tokens=32),
        at(EventKind.RESUMED, 13.0),
        at(EventKind.PREFILL_CHUNK, 14.0, num_tokens=32, num_steps=1),
        at(EventKind.PREFILL_CHUNK, 15.0, num_tokens=32, num_steps=1),
        at(EventKind.FINISHED, 16.0),
    )
    assert [kind for kind, _, _ in pieces(explanation)] == [
        "prefill",
        "prefill",
        "preempted",
        "recompute",
        "prefill",
        "prefill",
    ]


def test_explain_reaches_to_now_while_a_request_lives() -> None:
    explanation = told(at(EventKind.QUEUED, 10.0, "3 others waiting"), now_s=12.0)
    assert pieces(explanation) == [("queued", 0.0, 2.0)]


@pytest.mark.parametrize(
    ("events", "summary"),
    [
        ([at(EventKind.FINISHED, 10.0)], "It took no time."),
        (FULL_LIFE[:3], "Held 2.0 s of 3.0 s (needs 9 blocks, 4 available): raise --kv-cache-"),
        (FULL_LIFE, "Generated 20 tokens for 4.0 s of 10.2 s: ask for fewer with max_tokens"),
    ],
)
def test_explain_sums_up_what_took_the_most_time(events: list[RequestEvent], summary: str) -> None:
    assert told(*events).summary.startswith(summary)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        (WaitReason.SEATS, "raise --max-num-seqs or give the tenant a larger weight"),
        (WaitReason.TOKENS, "raise --max-num-batched-tokens"),
        (WaitReason.MEMORY, "raise --kv-cache-memory"),
        (WaitReason.TENANT_LIMIT, "raise the tenant's limit"),
        (WaitReason.SIBLING, "nothing to gain"),
    ],
)
def test_explain_advises_by_what_was_lacking(reason: WaitReason, advice: str) -> None:
    events = [
        at(EventKind.HELD, 10.0, "why", reason=reason),
        at(EventKind.SCHEDULED, 13.0),
        at(EventKind.FIRST_TOKEN, 13.5, num_tokens=3),
        at(EventKind.FINISHED, 14.0, num_tokens=4),
    ]
    summary = told(*events).summary
    assert "3.0 s of 4.0 s (why): " + advice in summary


def test_explain_blames_what_was_lacking_at_the_door_for_the_queue_behind_it() -> None:
    summary = told(
        at(EventKind.QUEUED, 10.0, "3 others waiting"),
        at(EventKind.HELD, 12.0, "2 run already", reason=WaitReason.TENANT_LIMIT),
        at(EventKind.FINISHED, 12.5),
    ).summary
    assert summary.startswith("Queued 2.0 s of 2.5 s (3 others waiting): raise the tenant's limit")


def test_explain_blames_memory_when_preemptions_cost_the_most() -> None:
    events = [
        at(EventKind.QUEUED, 10.0),
        at(EventKind.SCHEDULED, 10.0),
        at(EventKind.FIRST_TOKEN, 11.0, num_tokens=3),
        at(EventKind.PREEMPTED, 11.5, num_tokens=5),
        at(EventKind.RESUMED, 12.5),
        at(EventKind.RECOMPUTED, 13.5, num_tokens=6),
        at(EventKind.FINISHED, 14.5, num_tokens=9),
    ]
    assert told(*events).summary.startswith(
        "Lost 2.0 s of 4.5 s by giving up its memory once: raise --kv-cache-memory"
    )


class SlowExecutor(RecordingExecutor):
    """A step takes a second."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.clock = clock

    def execute(self, plan: StepPlan) -> StepResult:
        self.clock.advance(1.0)
        return super().execute(plan)


def slow_engine(**options) -> Engine:
    clock = ManualClock()
    engine, _ = make_engine(clock=clock, **options)
    engine._executor = SlowExecutor(clock)
    return engine


def last_deltas(engine: Engine) -> dict[str, Delta]:
    ended = {}
    while engine.has_work:
        ended |= {d.request_id: d for d in engine.step() if d.finish_reason}
    return ended


def test_queued_request_knows_what_the_queue_stood_for() -> None:
    engine = slow_engine(max_num_seqs=1)
    for name in "abc":
        engine.add_request(name, [1, 2, 3], SamplingParams(max_tokens=2))
    engine.step()
    live = engine.explain("c")
    assert live.intervals[0].cause == "2 others waiting, 1.000 s for seats"
    assert "raise --max-num-seqs" in live.summary
    store = ExplainStore()
    for delta in last_deltas(engine).values():
        store.add(delta)
    last = store.get("c")
    assert [(i.kind.value, i.end_s, i.cause) for i in last.intervals[:2]] == [
        ("queued", 2.0, "2 others waiting, 2.000 s for seats"),
        ("queued", 4.0, "all 1 seats are taken"),
    ]
    assert engine.explain("c") is None


def test_sibling_is_held_until_the_prompt_is_computed() -> None:
    engine = slow_engine()
    engine.add_request("r", [*range(6)], SamplingParams(max_tokens=1, n=2))
    engine.step()
    first = engine.explain("r#1").intervals[0]
    assert (first.kind, first.cause) == ("held", "r computes the prompt for both")


def test_prompt_of_many_chunks_is_told_in_few_events() -> None:
    engine = slow_engine(num_blocks=300, max_num_batched_tokens=10, max_model_len=1000)
    engine.add_request("r", [*range(900)], SamplingParams(max_tokens=1))
    delta = last_deltas(engine)["r"]
    assert len(delta.events) == NUM_DETAILED_EVENTS + 2
    chunks = [event for event in delta.events if event.kind is EventKind.PREFILL_CHUNK]
    assert sum(chunk.num_tokens for chunk in chunks) == 890
    assert sum(chunk.num_steps for chunk in chunks) == 89
    store = ExplainStore()
    store.add(delta)
    assert store.get("r").intervals[-2].detail == f"{10 * (89 - 29)} tokens in {89 - 29} steps"
    assert "Computed 900 prompt tokens for 90.0 s of 90.0 s" in store.get("r").summary


def test_last_delta_survives_messagepack_with_its_events() -> None:
    engine = slow_engine()
    engine.add_request("r", [1, 2, 3], SamplingParams(max_tokens=2), tenant_id="ann")
    delta = last_deltas(engine)["r"]
    assert (delta.metrics.tenant_id, delta.metrics.num_prompt_tokens) == ("ann", 3)
    copy = msgspec.msgpack.decode(msgspec.msgpack.encode(delta), type=Delta)
    assert copy == delta
    assert [event.kind for event in copy.events] == [
        EventKind.QUEUED,
        EventKind.SCHEDULED,
        EventKind.FIRST_TOKEN,
        EventKind.FINISHED,
    ]


def test_metrics_of_an_aborted_request_end_with_the_abort() -> None:
    engine = slow_engine()
    engine.add_request("r", [1, 2, 3], SamplingParams(max_tokens=9))
    engine.add_request("other", [1, 2, 3], SamplingParams(max_tokens=9))
    engine.step()
    engine.abort("r")
    metrics = last_deltas(engine)["r"].metrics
    assert metrics.finished_s == 1.0


def test_store_forgets_the_oldest_and_finds_every_completion() -> None:
    engine = slow_engine()
    engine.add_request("r", [1, 2], SamplingParams(max_tokens=1, n=2), tenant_id="ann")
    store = ExplainStore(max_requests=2)
    while engine.has_work:
        for delta in engine.step():
            store.add(delta)
    assert (store.get("r").tenant_id, store.get("r#1").request_id) == ("ann", "r#1")
    for name in ("x", "y"):
        engine.add_request(name, [1, 2], SamplingParams(max_tokens=1))
        store.add(last_deltas(engine)[name])
    assert (len(store), store.get("r"), store.get("r#1")) == (2, None, None)
    assert store.get("x").status == "length"


def test_to_json_names_what_the_interface_promises() -> None:
    body = told(*FULL_LIFE).to_json()
    assert list(body) == ["id", "tenant", "status", "latency_s", "intervals", "totals", "summary"]
    assert body["intervals"][2] == {
        "kind": "held",
        "start_s": 1.0,
        "end_s": 3.0,
        "duration_s": 2.0,
        "cause": "needs 9 blocks, 4 available",
        "detail": "",
    }
    assert body["totals"]["decode"] == 4.0
