"""Steps taken together leave behind what they do one by one."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.core.clock import VirtualClock
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.execution.costs import StepShape
from evenflow.fairness.tenants import Tenant, TenantDirectory, TenantLimits
from evenflow.scheduling.coasting import coast, coasting_steps
from evenflow.simulation.executor import SimulatedExecutor
from support.scripted_engine import make_engine


class Costs:
    """Durations that floats add up without error."""

    description = "a test"

    def step_s(self, shape: StepShape) -> float:
        return (8 + shape.num_tokens + shape.num_decode_context_tokens % 5) / 1024


Arrival = tuple[float, int, int, int, str, int]

arrivals = st.lists(
    st.tuples(
        st.integers(0, 400).map(lambda n: n / 64),  # when
        st.integers(1, 40),  # prompt tokens
        st.integers(1, 60),  # output tokens
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
        "policy": st.sampled_from(["fcfs", "priority"]),
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
            request.token_ids,
            request.num_computed_tokens,
            kv.table(request.request_id).ids.tolist(),
            kv.next_full(request.request_id),
        )
        for request in map(_copy, scheduler.running)
    ]
    waiting = [request.request_id for request in scheduler.waiting]
    service = dict(scheduler.service.num_output_tokens)
    return [running, waiting, kv.stats(), list(kv.block_map()), service]


def _copy(request: Any) -> Any:
    class Copy:
        request_id = request.request_id
        token_ids = tuple(request.token_ids)
        num_computed_tokens = request.num_computed_tokens

    return Copy


def serve(
    rows: list[Arrival], options: dict[str, Any], *, coasts: bool
) -> tuple[dict[int, list[Any]], dict[str, Any], SimulatedExecutor]:
    """Serve requests; return snapshots by number of steps, the ends, and the executor."""
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
        for delta in engine.step():
            if delta.finish_reason is not None:
                ends[delta.request_id] = (delta.metrics, delta.events)
        snapshots[executor.num_steps] = snapshot(engine)
        if coasts and (max_steps := coasting_steps(engine.scheduler)):
            until_s = coming[0][1][0] if coming else math.inf
            num_steps = executor.coast(engine.scheduler.running, max_steps, until_s)
            coast(engine.scheduler, num_steps, executor.answer)
            engine.scheduler.check_integrity()
            snapshots[executor.num_steps] = snapshot(engine)
    return snapshots, ends, executor


@settings(max_examples=150, deadline=None)
@given(arrivals, engines)
def test_coasting_leaves_behind_what_single_steps_do(
    rows: list[Arrival], options: dict[str, Any]
) -> None:
    alone, ends, executor = serve(rows, options, coasts=False)
    together, same_ends, coaster = serve(rows, options, coasts=True)
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
