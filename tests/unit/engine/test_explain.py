from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from evenflow.core.clock import VirtualClock
from evenflow.core.events import NUM_DETAILED_EVENTS, EventKind, RequestEvent, WaitReason
from evenflow.core.sampling import SamplingParams
from evenflow.core.status import RequestStatus
from evenflow.engine.engine import Engine
from evenflow.engine.explain import Explanation, explain
from evenflow.engine.explain_store import ExplainStore
from evenflow.engine.outputs import Delta
from evenflow.scheduling.plan import StepPlan, StepResult
from evenflow.scheduling.switching import SwitchOptions
from support.scripted_engine import RecordingExecutor, make_engine
from support.slow_tiers import HOST_BLOCK_S, slow_tiers


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
    at(EventKind.PREFILL_CHUNK, 14.0, num_tokens=64, num_times=1),
    at(EventKind.FIRST_TOKEN, 14.5, num_tokens=20),
    at(EventKind.PREEMPTED, 16.5, "recompute: x needed a block", num_tokens=110),
    at(EventKind.HELD, 17.0, "no free seat among 8", reason=WaitReason.SEATS),
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
    assert causes[7] == "no free seat among 8"


def test_explain_tells_recompute_from_prefill_when_a_prompt_was_lost_half_way() -> None:
    explanation = told(
        at(EventKind.QUEUED, 10.0),
        at(EventKind.SCHEDULED, 10.0),
        at(EventKind.PREFILL_CHUNK, 11.0, num_tokens=32, num_times=1),
        at(EventKind.PREEMPTED, 12.0, num_tokens=32),
        at(EventKind.RESUMED, 13.0),
        at(EventKind.PREFILL_CHUNK, 14.0, num_tokens=32, num_times=1),
        at(EventKind.PREFILL_CHUNK, 15.0, num_tokens=32, num_times=1),
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


def test_explain_splits_a_decode_at_a_pause() -> None:
    explanation = told(
        at(EventKind.SCHEDULED, 10.0),
        at(EventKind.FIRST_TOKEN, 11.0, num_tokens=8),
        at(EventKind.PAUSED, 13.0, "paused by an operator", reason=WaitReason.PAUSE, num_tokens=18),
        at(EventKind.CONTINUED, 18.0),
        at(EventKind.FINISHED, 19.0, num_tokens=22),
    )
    assert [(i.kind.value, i.start_s, i.end_s, i.num_tokens) for i in explanation.intervals] == [
        ("prefill", 0.0, 1.0, 8),
        ("decode", 1.0, 3.0, 10),
        ("held", 3.0, 8.0, 0),
        ("decode", 8.0, 9.0, 4),
    ]
    assert explanation.intervals[-1].cause == "a token per step"
    assert explanation.summary == "Held 5.0 s of 9.0 s (paused by an operator): have it resumed."


@pytest.mark.parametrize(("interrupted", "kind"), [(2, "held"), (6, "preempted"), (8, "recompute")])
def test_explain_goes_on_after_a_pause_with_what_was_interrupted(
    interrupted: int, kind: str
) -> None:
    paused_s = FULL_LIFE[interrupted - 1].at_s
    explanation = told(
        *FULL_LIFE[:interrupted],
        at(EventKind.PAUSED, paused_s + 0.125, reason=WaitReason.PAUSE),
        at(EventKind.CONTINUED, paused_s + 0.1875),
        *FULL_LIFE[interrupted:],
    )
    start_s = paused_s + 0.1875 - 10
    (after,) = [i for i in explanation.intervals if i.start_s == start_s]
    assert after.kind == kind
    assert after.cause == FULL_LIFE[interrupted - 1].cause
    assert after.reason == FULL_LIFE[interrupted - 1].reason


def test_explain_counts_a_pause_before_the_first_step_as_queue_time() -> None:
    explanation = told(
        at(EventKind.QUEUED, 10.0, "0 others waiting"),
        at(EventKind.PAUSED, 10.0, reason=WaitReason.PAUSE),
        at(EventKind.CONTINUED, 14.0),
        at(EventKind.SCHEDULED, 15.0),
        at(EventKind.FIRST_TOKEN, 16.0, num_tokens=1),
        at(EventKind.FINISHED, 16.0, num_tokens=1),
    )
    assert explanation.queue_time_s == 5.0


def test_explain_counts_the_tokens_of_a_decode_that_goes_on() -> None:
    explanation = explain(
        FULL_LIFE[:5],
        request_id="r",
        tenant_id="t",
        status="running",
        arrival_s=10.0,
        now_s=30.0,
        num_computed_tokens=155,
    )
    assert explanation.intervals[-1].detail == "55 tokens, 281.8 ms each"
    assert explanation.summary.startswith("Generated 55 tokens for 15.5 s of 20.0 s")


def test_explain_speaks_of_one_token_as_one() -> None:
    explanation = told(
        at(EventKind.SCHEDULED, 10.0),
        at(EventKind.PREFILL_CHUNK, 11.0, num_tokens=1),
        at(EventKind.FIRST_TOKEN, 12.0, num_tokens=1),
        at(EventKind.FINISHED, 15.0, num_tokens=3),
    )
    assert [i.detail for i in explanation.intervals] == ["1 token", "1 token", "1 token"]
    assert explanation.summary.startswith("Generated 1 token for 3.0 s")


def test_explain_counts_preemptions_that_were_merged() -> None:
    events = [
        at(EventKind.SCHEDULED, 10.0),
        at(EventKind.FIRST_TOKEN, 10.5, num_tokens=3),
        at(EventKind.PREEMPTED, 11.0, reason=WaitReason.MEMORY, num_tokens=5, num_times=7),
        at(EventKind.FINISHED, 19.0, num_tokens=0),
    ]
    assert "by giving up its memory 7 times" in told(*events).summary


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
        at(EventKind.PREEMPTED, 11.5, reason=WaitReason.MEMORY, num_tokens=5),
        at(EventKind.RESUMED, 12.5),
        at(EventKind.RECOMPUTED, 13.5, num_tokens=6),
        at(EventKind.FINISHED, 14.5, num_tokens=9),
    ]
    assert told(*events).summary.startswith(
        "Lost 2.0 s of 4.5 s by giving up its memory once: raise --kv-cache-memory"
    )


SWAPPED_LIFE = [
    at(EventKind.SCHEDULED, 10.0),
    at(EventKind.FIRST_TOKEN, 11.0, num_tokens=30),
    at(EventKind.PREEMPTED, 12.0, "swap: x comes first", reason=WaitReason.RANK, num_tokens=39),
    at(EventKind.SWAPPING_IN, 15.0, "3 blocks loaded from host"),
    at(EventKind.RESUMED, 15.5, "39 of 40 tokens already have KV", num_tokens=39),
    at(EventKind.RECOMPUTED, 15.75, num_tokens=1),
    at(EventKind.FINISHED, 16.0, num_tokens=41),
]


def test_explain_calls_the_first_step_after_a_whole_swap_a_decode() -> None:
    explanation = told(*SWAPPED_LIFE)
    assert pieces(explanation)[2:] == [
        ("preempted", 2.0, 5.0),
        ("swap_in", 5.0, 5.5),
        ("decode", 5.5, 5.75),
        ("decode", 5.75, 6.0),
    ]
    assert [i.cause for i in explanation.intervals[2:4]] == [
        "swap: x comes first",
        "3 blocks loaded from host",
    ]


def test_explain_calls_what_could_not_be_loaded_recomputed() -> None:
    failure = "16 of 40 tokens already have KV; loading more failed: checksum"
    explanation = told(
        *SWAPPED_LIFE[:4],
        at(EventKind.RESUMED, 15.5, failure, num_tokens=16),
        at(EventKind.RECOMPUTED, 16.5, num_tokens=24),
        at(EventKind.FINISHED, 17.0, num_tokens=41),
    )
    interval = explanation.intervals[-2]
    assert (interval.kind.value, interval.cause) == ("recompute", failure)
    assert (interval.detail, interval.lost_to) == ("24 tokens", WaitReason.RANK)


def test_explain_blames_rank_when_making_way_cost_the_most() -> None:
    assert told(*SWAPPED_LIFE).summary == (
        "Lost 3.5 s of 6.0 s by making way once for requests that come first: "
        "give it a more urgent priority, or its tenant a larger weight."
    )


def test_explain_blames_what_took_more_when_places_were_lost_for_several_things() -> None:
    again = [replace(event, at_s=event.at_s + 4) for event in SWAPPED_LIFE[2:]]
    again[0] = replace(again[0], reason=WaitReason.MEMORY, at_s=15.875)
    summary = told(*SWAPPED_LIFE[:-1], *again).summary
    assert "by giving up its memory 2 times: raise --kv-cache-memory" in summary


def test_explain_says_when_loading_took_the_most_without_any_loss() -> None:
    explanation = told(
        at(EventKind.QUEUED, 10.0),
        at(EventKind.SWAPPING_IN, 10.0, "9 blocks loaded from disk"),
        at(EventKind.SCHEDULED, 13.0, num_tokens=100),
        at(EventKind.FIRST_TOKEN, 13.5, num_tokens=5),
        at(EventKind.FINISHED, 14.0, num_tokens=106),
    )
    assert explanation.summary.startswith(
        "Loaded KV for 3.0 s of 4.0 s (9 blocks loaded from disk)"
    )
    assert [i.lost_to for i in explanation.intervals] == [None] * 3


class SlowExecutor(RecordingExecutor):
    """A step takes a second."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self.clock = clock

    def execute(self, plan: StepPlan) -> StepResult:
        self.clock.advance(1.0)
        return super().execute(plan)


def slow_engine(clock: VirtualClock | None = None, **options) -> Engine:
    clock = clock or VirtualClock()
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
        ("queued", 4.0, "no free seat among 1"),
    ]
    assert engine.explain("c") is None


def test_preempted_request_knows_who_came_first_and_what_became_of_its_kv() -> None:
    clock = VirtualClock()
    engine = slow_engine(
        clock,
        policy="priority",
        max_num_seqs=1,
        residency=slow_tiers(clock, num_disk_blocks=64),
        switching=SwitchOptions(
            mode="swap", write_back=False, keep_head=False, prefetch=False, max_share=1000
        ),
    )
    engine.add_request("low", [*range(14)], SamplingParams(max_tokens=8), priority=5)
    engine.step()
    engine.step()
    engine.add_request("high", [7, 8, 9], SamplingParams(max_tokens=2), priority=1)
    store = ExplainStore()
    for delta in last_deltas(engine).values():
        store.add(delta)
    life = store.get("low")
    away = [i for i in life.intervals if i.lost_to is not None]
    assert [(i.kind.value, i.cause) for i in away] == [
        (
            "preempted",
            "swap: high comes first; gave back 6 blocks, 0 of them clean, 4 written; "
            "no free seat among 1",
        ),
        ("swap_in", "4 blocks loaded from host"),
    ]
    assert away[-1].duration_s == 4 * HOST_BLOCK_S
    assert [i.kind.value for i in life.intervals if i.start_s >= away[-1].end_s] == ["decode"] * 2


def test_queued_request_speaks_of_one_other_as_one() -> None:
    engine = slow_engine(max_num_seqs=1)
    for name in "ab":
        engine.add_request(name, [1, 2, 3], SamplingParams(max_tokens=2))
    assert [r.events[0].cause for r in engine.live_requests] == [
        "0 others waiting",
        "1 other waiting",
    ]


def test_queue_does_not_stand_still_for_what_was_lacking_before_it_was_empty() -> None:
    engine = slow_engine(max_num_seqs=1)
    clock = engine._clock
    engine.add_request("runs", [1, 2, 3], SamplingParams(max_tokens=50))
    engine.add_request("gone", [1, 2, 3], SamplingParams(max_tokens=50))
    engine.step()
    engine.abort("gone")
    engine.step()
    engine.add_request("late", [1, 2, 3], SamplingParams(max_tokens=1))
    clock.advance(5.0)
    assert engine.explain("late").intervals[0].cause == "0 others waiting"


def paused_engine() -> Engine:
    """One request runs, one is at the door, one is queued; then everything is paused for 5 s."""
    engine = slow_engine(max_num_seqs=1)
    for name in "abc":
        engine.add_request(name, [1, 2, 3], SamplingParams(max_tokens=3))
    engine.step()
    engine.step()
    engine.pause()
    engine.add_request("d", [1, 2, 3], SamplingParams(max_tokens=1, n=2))
    engine._clock.advance(5.0)
    return engine


@pytest.mark.parametrize(("name", "since_s"), [("a", 2.0), ("b", 2.0), ("c", 2.0), ("d", 0.0)])
def test_pause_is_told_to_everybody_who_lives_or_comes(name: str, since_s: float) -> None:
    engine = paused_engine()
    assert engine.step() == []
    assert not engine.started
    last = engine.explain(name).intervals[-1]
    assert (last.kind, last.cause) == ("held", "paused by an operator")
    assert (last.start_s, last.duration_s) == (since_s, 5.0)


def test_pause_is_over_for_everybody_when_the_engine_resumes() -> None:
    engine = paused_engine()
    engine.pause()
    engine.resume()
    engine.resume()
    engine.scheduler.check_integrity()
    store = ExplainStore()
    while engine.has_work:
        for delta in engine.step():
            store.add(delta)
    for name in ("a", "b", "c", "d", "d#1"):
        pauses = [i for i in store.get(name).intervals if i.cause == "paused by an operator"]
        assert [pause.duration_s for pause in pauses] == [5.0], name
    queued, _, again = store.get("c").intervals[:3]
    assert queued.cause == again.cause == "2 others waiting, 3.000 s for seats"
    assert (queued.kind, again.kind) == ("queued", "queued")
    assert [i.kind.value for i in store.get("b").intervals[:3]] == ["queued", "held", "queued"]


def test_abort_during_a_pause_leaves_nothing_behind() -> None:
    engine = paused_engine()
    for name in "abcd":
        engine.abort(name)
    engine.scheduler.check_integrity()
    assert not engine.scheduler._waits.queued_ids
    ended = {delta.request_id for delta in engine.step() if delta.finish_reason == "abort"}
    assert ended == set("abcd")
    assert not engine.has_work


def test_sibling_of_a_request_aborted_during_a_pause_is_paused_too() -> None:
    engine = slow_engine()
    engine.add_request("r", [*range(6)], SamplingParams(max_tokens=1, n=2))
    engine.pause()
    scheduler = engine.scheduler
    scheduler.finish(scheduler.requests["r"], RequestStatus.FINISHED_ABORTED, 0.0, "test")
    engine._clock.advance(4.0)
    last = engine.explain("r#1").intervals[-1]
    assert (last.cause, last.duration_s) == ("paused by an operator", 4.0)


def test_live_request_has_counted_the_tokens_it_generated() -> None:
    engine = slow_engine()
    engine.add_request("r", [1, 2, 3], SamplingParams(max_tokens=50))
    for _ in range(11):
        engine.step()
    live = engine.explain("r")
    assert live.intervals[-1].detail == "10 tokens, 1000.0 ms each"
    assert live.summary.startswith("Generated 10 tokens for 10.0 s of 11.0 s")


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
    assert sum(chunk.num_times for chunk in chunks) == 89
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
