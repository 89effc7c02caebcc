"""Intervals add up to the latency, for any turning points, and say what really happened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import fsum, isclose

from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.core.clock import VirtualClock
from evenflow.core.events import NUM_DETAILED_EVENTS, EventKind, RequestEvent, WaitReason
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.core.status import RequestStatus
from evenflow.engine.completions import completion_id
from evenflow.engine.engine import Engine
from evenflow.engine.explain import Explanation, explain
from evenflow.engine.explain_store import ExplainStore
from evenflow.engine.outputs import Delta
from evenflow.scheduling.plan import StepPlan, StepResult
from support.scripted_engine import RecordingExecutor, make_engine

NEXT = {
    EventKind.QUEUED: [
        EventKind.HELD,
        EventKind.SWAPPING_IN,
        EventKind.SCHEDULED,
        EventKind.FINISHED,
    ],
    EventKind.HELD: [EventKind.HELD, EventKind.SCHEDULED, EventKind.QUEUED, EventKind.FINISHED],
    EventKind.SWAPPING_IN: [
        EventKind.SCHEDULED,
        EventKind.RESUMED,
        EventKind.PAUSED,
        EventKind.FINISHED,
    ],
    EventKind.SCHEDULED: [EventKind.PREFILL_CHUNK, EventKind.FIRST_TOKEN, EventKind.PREEMPTED],
    EventKind.PREFILL_CHUNK: [
        EventKind.PREFILL_CHUNK,
        EventKind.FIRST_TOKEN,
        EventKind.PREEMPTED,
        EventKind.FINISHED,
    ],
    EventKind.FIRST_TOKEN: [EventKind.PREEMPTED, EventKind.PAUSED, EventKind.FINISHED],
    EventKind.PREEMPTED: [
        EventKind.HELD,
        EventKind.SWAPPING_IN,
        EventKind.RESUMED,
        EventKind.PAUSED,
        EventKind.FINISHED,
    ],
    EventKind.RESUMED: [EventKind.PREFILL_CHUNK, EventKind.RECOMPUTED, EventKind.PREEMPTED],
    EventKind.RECOMPUTED: [EventKind.PREEMPTED, EventKind.FINISHED],
    EventKind.PAUSED: [EventKind.CONTINUED, EventKind.FINISHED],
    EventKind.CONTINUED: [EventKind.PAUSED, EventKind.FINISHED],
}


def check_adds_up(explanation: Explanation) -> None:
    edges = [0.0]
    for interval in explanation.intervals:
        assert interval.start_s == edges[-1], "there is a gap"
        assert interval.end_s > interval.start_s, "an interval is empty"
        edges.append(interval.end_s)
    assert edges[-1] == explanation.latency_s
    assert isclose(fsum(explanation.totals.values()), explanation.latency_s, rel_tol=1e-12)
    assert explanation.summary.endswith(".")
    body = explanation.to_json()
    assert isclose(
        fsum(interval["duration_s"] for interval in body["intervals"]),
        body["latency_s"],
        rel_tol=1e-12,
    )


@settings(max_examples=300, derandomize=True, deadline=None)
@given(data=st.data())
def test_explain_adds_up_for_any_legal_turning_points(data: st.DataObject) -> None:
    arrival_s = at_s = data.draw(st.floats(0, 1e6))
    events: list[RequestEvent] = []
    kind = data.draw(st.sampled_from([EventKind.QUEUED, EventKind.HELD]))
    for _ in range(data.draw(st.integers(0, 30))):
        at_s += data.draw(st.floats(0, 100))
        is_reasoned = kind in (EventKind.HELD, EventKind.PREEMPTED)
        reason = data.draw(st.sampled_from(WaitReason)) if is_reasoned else None
        num_tokens = data.draw(st.integers(0, 1000))
        events.append(RequestEvent(kind, at_s, "why", reason, num_tokens, 1))
        if kind is EventKind.FINISHED:
            break
        kind = data.draw(st.sampled_from(NEXT[kind]))
    now_s = at_s + data.draw(st.floats(0, 10))
    explanation = explain(
        events, request_id="r", tenant_id="t", status="x", arrival_s=arrival_s, now_s=now_s
    )
    check_adds_up(explanation)
    is_finished = bool(events) and events[-1].kind is EventKind.FINISHED
    assert explanation.latency_s == (at_s if is_finished else now_s) - arrival_s


class Witness(RecordingExecutor):
    """Moves the clock, and notes for every request what it spends that time on.

    Times are multiples of 1/8 s, so that sums of them are exact.
    """

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self.clock = clock
        self.step_s = 0.125
        self.is_paused = False
        self.spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.reach: dict[str, int] = defaultdict(int)
        self.requests: dict[str, Request] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        self.pass_time(self.step_s)
        return super().execute(plan)

    def pass_time(self, seconds: float) -> None:
        for request in self.requests.values():
            self.spent[request.request_id][self.doing(request)] += seconds
        self.clock.advance(seconds)

    def note_reach(self) -> None:
        """Remember how far everybody's KV ever came."""
        for request in self.requests.values():
            if request.status is RequestStatus.RUNNING:
                before = self.reach[request.request_id]
                self.reach[request.request_id] = max(before, request.num_computed_tokens)

    def doing(self, request: Request) -> str:
        if self.is_paused:
            return "held"
        if request.status is RequestStatus.PREEMPTED:
            return "preempted"
        if request.status is RequestStatus.WAITING:
            last = request.events[-1]
            short = (None, WaitReason.SEATS, WaitReason.TOKENS)
            return "queued" if last.reason in short else "held"
        if request.status is RequestStatus.SWAPPING_IN:
            return "swap_in"
        if request.num_computed_tokens < self.reach[request.request_id]:
            return "recompute"
        return "decode" if request.num_output_tokens else "prefill"


OPERATIONS = st.one_of(
    st.tuples(
        st.just("add"), st.integers(1, 40), st.integers(1, 16), st.sampled_from([1, 1, 1, 3])
    ),
    st.tuples(st.just("step"), st.integers(0, 8), st.integers(1, 6)),
    st.tuples(st.just("idle"), st.integers(0, 8)),
    st.tuples(st.just("abort"), st.integers(0, 10)),
    st.tuples(st.sampled_from(["pause", "resume"])),
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    operations=st.lists(OPERATIONS, max_size=30),
    num_blocks=st.sampled_from([12, 14, 40]),
    caching=st.booleans(),
    max_num_seqs=st.integers(1, 5),
)
def test_explain_tells_what_every_request_spent_its_time_on(
    operations: Sequence[tuple], num_blocks: int, caching: bool, max_num_seqs: int
) -> None:
    clock = VirtualClock(1000.0)
    engine, _ = make_engine(
        clock=clock,
        num_blocks=num_blocks,
        max_model_len=48,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=12,
        enable_prefix_caching=caching,
    )
    run = Run(engine, Witness(clock))
    for name, *arguments in operations:
        getattr(run, name)(*arguments)
        for own_id in list(engine.scheduler.requests):
            live = engine.explain(own_id)
            check_adds_up(live)
            check_told_truly(live, run.witness.spent[own_id], NUM_DETAILED_EVENTS)
    run.resume()
    while engine.has_work:
        run.step(1, 1)
    assert run.num_ended == run.num_completions


class Run:
    """An engine at work, and what its witness says of everybody who ends."""

    def __init__(self, engine: Engine, witness: Witness) -> None:
        self.engine = engine
        self.witness = witness
        self.witness.requests = engine.scheduler.requests
        self.engine._executor = witness
        self.store = ExplainStore()
        self.num_ended = self.num_completions = self.num_requests = 0

    def add(self, length: int, max_tokens: int, n: int) -> None:
        params = SamplingParams(max_tokens=max_tokens, n=n)
        self.engine.add_request(f"r{self.num_requests}", [*range(length)], params)
        self.num_requests += 1
        self.num_completions += n

    def idle(self, eighths: int) -> None:
        self.witness.pass_time(eighths / 8)

    def pause(self) -> None:
        self.engine.pause()
        self.witness.is_paused = True

    def resume(self) -> None:
        self.engine.resume()
        self.witness.is_paused = False

    def abort(self, number: int) -> None:
        self.engine.abort(f"r{number}")

    def step(self, eighths: int, num_steps: int) -> None:
        self.witness.step_s = eighths / 8
        for _ in range(num_steps):
            deltas = self.engine.step()
            self.witness.note_reach()
            for delta in deltas:
                self.store.add(delta)
                if delta.finish_reason is not None:
                    self.end(delta)

    def end(self, delta: Delta) -> None:
        self.num_ended += 1
        own_id = completion_id(delta.request_id, delta.index)
        explanation = self.store.get(own_id)
        check_adds_up(explanation)
        assert explanation.latency_s == delta.metrics.finished_s - delta.metrics.arrival_s
        assert explanation.status == delta.finish_reason
        check_told_truly(explanation, self.witness.spent[own_id], len(delta.events))


def check_told_truly(explanation: Explanation, spent: dict[str, float], num_events: int) -> None:
    """Compare with the witness; where events were merged, only by groups of kinds."""
    told = {kind.value: seconds for kind, seconds in explanation.totals.items()}
    if num_events < NUM_DETAILED_EVENTS:
        assert told == {kind: seconds for kind, seconds in spent.items() if seconds}
    groups = (("queued", "held"), ("prefill", "recompute"), ("preempted", "swap_in"), ("decode",))
    for group in groups:
        assert fsum(told.get(kind, 0.0) for kind in group) == fsum(
            spent.get(kind, 0.0) for kind in group
        )
