"""Steps taken together leave behind what they do one by one."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evenflow.core.clock import VirtualClock
from evenflow.core.errors import IntegrityError
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.execution.costs import StepShape
from evenflow.fairness.tenants import Tenant, TenantDirectory, TenantLimits
from evenflow.scheduling.coasting import Coast
from evenflow.scheduling.policies.fcfs import Fcfs
from evenflow.simulation.executor import SimulatedExecutor
from support.scripted_engine import make_engine
from support.step_costs import OneByOne


class Costs(OneByOne):
    """Durations that floats add up without error."""

    description = "a test"

    def step_s(self, shape: StepShape) -> float:
        return (8 + shape.num_tokens + shape.num_decode_context_tokens % 5) / 1024


Arrival = tuple[float, int, int, int, str, int]

arrivals = st.lists(
    st.tuples(
        st.just(0.0) | st.integers(0, 400).map(lambda n: n / 64),  # when
        st.just(5) | st.integers(1, 40),  # prompt tokens
        st.just(9) | st.integers(1, 60),  # output tokens; several often end at once
        st.integers(0, 3),  # which text the prompt is of
        st.sampled_from(["blue", "green"]),
        st.integers(0, 2),  # priority
    ),
    min_size=1,
    max_size=12,
).map(lambda rows: sorted(rows, key=lambda row: row[0]))

engines = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(26, 60),
        "block_size": st.sampled_from([1, 4, 16]),
        "max_num_seqs": st.integers(1, 6),
        "max_num_batched_tokens": st.integers(7, 40),
        "policy": st.sampled_from(["fcfs", "priority", "vtc"]),
        "enable_prefix_caching": st.booleans(),
        "max_model_len": st.just(100),
    }
)


def snapshot(engine: Engine) -> list[Any]:
    """Return all that decisions rest on, and where everybody's tokens lie."""
    scheduler = engine.scheduler
    kv = scheduler.kv
    running = [
        (
            request.request_id,
            tuple(request.token_ids),
            request.num_computed_tokens,
            kv.table(request.request_id).ids.tolist(),
            kv.table(request.request_id).capacity_tokens,
        )
        for request in scheduler.running
    ]
    if scheduler.policy.ranks_tenants:
        running.sort()  # they are ranked anew before anybody looks at their order
    waiting = [request.request_id for request in scheduler.waiting]
    service = dict(scheduler.service.num_output_tokens)
    return [running, waiting, kv.stats(), list(kv.block_map()), service]


def serve(
    rows: list[Arrival],
    options: dict[str, Any],
    *,
    coasts: bool,
    lands: bool = True,
    at: Collection[int] | None = None,
) -> tuple[dict[int, list[Any]], dict[str, Any], SimulatedExecutor]:
    """Serve requests; return snapshots by number of steps, the ends, and the executor.

    Args:
        rows: the requests.
        options: the engine.
        coasts: take equal steps together.
        lands: look at everything again and again, and not only at the end.
        at: numbers of steps after which a snapshot is wanted; None for all.
    """
    options = dict(options)
    if options["block_size"] == 1:
        options["num_blocks"] += 80
    clock = VirtualClock()
    directory = TenantDirectory([Tenant("green", limits=TenantLimits(max_running=2))])
    engine, _ = make_engine(clock=clock, directory=directory, **options)
    executor = SimulatedExecutor(Costs(), clock)
    engine._executor = executor
    snapshots, ends = {}, {}
    coming = list(enumerate(rows))
    coast = Coast(engine.scheduler)
    while coming or engine.has_work:
        while coming and coming[0][1][0] <= clock.now_s():
            number, (_, num_prompt, num_output, text, tenant, priority) = coming.pop(0)
            engine.add_request(
                str(number),
                [text] * num_prompt,
                SamplingParams(max_tokens=num_output, ignore_eos=True),
                tenant_id=tenant,
                priority=priority,
            )
        if not engine.has_work:
            clock.advance_to(coming[0][1][0])
            continue
        if not coasts:
            deltas = engine.step()
        elif max_steps := coast.max_steps():
            until_s = coming[0][1][0] if coming else math.inf
            num_running = len(engine.scheduler.running)
            num_steps = executor.coast(num_running, coast.num_context_tokens, max_steps, until_s)
            deltas = engine.report(coast.take(num_steps, clock.now_s()))
        else:
            coast.begin_single()
            deltas = engine.step()
            deltas += engine.report(coast.end_single(clock.now_s()))
        ends |= {d.request_id: (d.metrics, d.events) for d in deltas if d.metrics is not None}
        if lands or not engine.has_work:
            coast.land()
            engine.scheduler.check_integrity()
            if at is None or executor.num_steps in at:
                snapshots[executor.num_steps] = snapshot(engine)
    return snapshots, ends, executor


ONE_SEAT = {
    "num_blocks": 60,
    "block_size": 16,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 40,
    "policy": "priority",
    "enable_prefix_caching": False,
    "max_model_len": 100,
}
OUSTED = [(0.0, 1, 5, 0, "green", 2), (0.03125, 9, 9, 0, "blue", 1)]

SIX_SEATS = ONE_SEAT | {
    "num_blocks": 26,
    "block_size": 4,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 16,
    "policy": "vtc",
}
LATER_TENANT_FIRST = [
    *[(0.0, 5, 9, 0, "blue", 0)] * 7,
    (0.0, 5, 9, 0, "green", 0),
    (0.0, 24, 9, 0, "green", 0),
]

THREE_SEATS = ONE_SEAT | {
    "num_blocks": 26,
    "block_size": 1,
    "max_num_seqs": 3,
    "max_num_batched_tokens": 10,
    "enable_prefix_caching": True,
}
ENDS_BEFORE_A_PROMPT = [
    *[(0.0, 5, 9, 0, "blue", 0)] * 3,
    *[(0.0, 5, 9, 0, "blue", 1)] * 5,
    (0.0, 5, 30, 0, "blue", 0),
    (0.0, 5, 15, 0, "blue", 0),
    (0.0, 33, 9, 1, "blue", 0),
    (0.015625, 5, 9, 0, "blue", 0),
]


@settings(max_examples=150, deadline=None)
@given(arrivals, engines, st.booleans())
@example(OUSTED, ONE_SEAT, True)
@example(LATER_TENANT_FIRST, SIX_SEATS, True)
@example(ENDS_BEFORE_A_PROMPT, THREE_SEATS, False)
def test_coasting_leaves_behind_what_single_steps_do(
    rows: list[Arrival], options: dict[str, Any], lands: bool
) -> None:
    together, same_ends, coaster = serve(rows, options, coasts=True, lands=lands)
    alone, ends, executor = serve(rows, options, coasts=False, at=together)
    assert coaster.num_steps == executor.num_steps
    for number, state in together.items():
        assert state == alone[number], number
    assert same_ends == ends
    assert coaster.gaps == executor.gaps


def test_coasting_takes_most_steps_of_a_long_answer_together() -> None:
    rows = [(0.0, 3, 90, 0, "blue", 0), (1.0, 3, 80, 1, "green", 0)]
    options = {"num_blocks": 60, "block_size": 4, "enable_prefix_caching": True}
    alone, _, _ = serve(rows, options, coasts=False)
    together, _, _ = serve(rows, options, coasts=True)
    assert len(together) < len(alone) / 8


def test_steps_list_none_of_those_who_coast() -> None:
    engine, _ = make_engine(num_blocks=200, max_model_len=128)
    coast = Coast(engine.scheduler)
    listed = []
    for number in range(6):
        params = SamplingParams(max_tokens=90, ignore_eos=True)
        engine.add_request(str(number), [number] * 5, params)
        coast.begin_single()
        engine.step()
        coast.end_single(0.0)
        listed.append([request.request_id for request in engine.scheduler.plan.requests])
    assert listed == [[str(number)] for number in range(6)]
    coast.land()
    assert [r.num_output_tokens for r in engine.scheduler.running] == [6, 5, 4, 3, 2, 1]


def test_those_who_end_beside_a_single_step_end_by_rank() -> None:
    engine, _ = make_engine(policy="priority")
    coast = Coast(engine.scheduler)
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    ended = []
    for names in (("last", "first"), ("other",)):
        for name in names:
            engine.add_request(name, [1] * 5, params, priority=name == "last")
        coast.begin_single()
        engine.step()
        ended += engine.report(coast.end_single(0.0))
    assert [delta.request_id for delta in ended] == ["first", "last"]


def test_policy_that_leaves_out_a_decode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_only(_: Any, residents: Sequence[Any], __: int) -> list[int]:
        return [0] * (len(residents) - 1) + [residents[-1].num_tokens]

    engine, _ = make_engine()
    engine.add_request("a", [1] * 5, SamplingParams(max_tokens=9))
    engine.step()
    engine.add_request("b", [2] * 5, SamplingParams(max_tokens=9))
    Coast(engine.scheduler).begin_single()
    monkeypatch.setattr(Fcfs, "compose", last_only)
    with pytest.raises(IntegrityError, match="decodes"):
        engine.step()
