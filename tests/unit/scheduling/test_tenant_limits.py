from __future__ import annotations

from collections import Counter
from typing import Any

from evenflow.core.events import EventKind, WaitReason
from evenflow.core.ids import TenantId
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.fairness.tenants import Tenant, TenantDirectory, TenantLimits
from support.scripted_engine import RecordingExecutor, make_engine

A, B = TenantId("a"), TenantId("b")


def make_limited_engine(max_running: int, **settings: Any) -> tuple[Engine, RecordingExecutor]:
    """Return an engine in which tenant a may run so many requests, and others any number."""
    directory = TenantDirectory([Tenant(A, TenantLimits(max_running=max_running))])
    return make_engine(directory=directory, **settings)


def add(
    engine: Engine, name: str, *, length: int = 4, max_tokens: int = 4, start: int = 0, n: int = 1
) -> None:
    """Queue a request of the tenant that its name begins with."""
    prompt = [(start + position) % 1000 for position in range(length)]
    params = SamplingParams(max_tokens=max_tokens, n=n)
    engine.add_request(name, prompt, params, tenant_id=TenantId(name[0]))


def run(engine: Engine) -> Counter[TenantId]:
    """Run to the end; return the most requests that each tenant ran at once."""
    most: Counter[TenantId] = Counter()
    for _ in range(1000):
        if not engine.has_work:
            return most
        engine.step()
        engine.scheduler.check_integrity()
        most |= Counter(request.tenant_id for request in engine.scheduler.running)
    raise AssertionError("the engine does not come to an end")


def first_steps(executor: RecordingExecutor) -> dict[str, int]:
    starts: dict[str, int] = {}
    for index, step in enumerate(executor.steps):
        for name in step:
            starts.setdefault(name, index)
    return starts


def test_tenant_runs_no_more_requests_than_it_may() -> None:
    engine, _ = make_limited_engine(2)
    for number in range(5):
        add(engine, f"a{number}")
        add(engine, f"b{number}")
    assert run(engine)[A] == 2


def test_tenant_at_its_limit_holds_up_nobody_behind_it() -> None:
    engine, executor = make_limited_engine(1)
    for name in ("a0", "a1", "a2", "b0", "a3", "b1"):
        add(engine, name)
    run(engine)
    starts = first_steps(executor)
    assert starts["a0"] == starts["b0"] == starts["b1"] == 0
    assert 0 < starts["a1"] < starts["a2"] < starts["a3"]


def test_tenant_at_its_limit_keeps_the_rank_of_its_requests() -> None:
    engine, executor = make_limited_engine(1, policy="priority")
    for name, priority in (("a-first", 0), ("a-late", 5), ("a-soon", 1)):
        params = SamplingParams(max_tokens=2)
        engine.add_request(name, [1, 2], params, priority=priority, tenant_id=A)
    run(engine)
    assert list(first_steps(executor)) == ["a-first", "a-soon", "a-late"]


def test_request_that_waits_for_memory_is_not_passed_by_others() -> None:
    engine, executor = make_limited_engine(1, num_blocks=32, enable_prefix_caching=False)
    add(engine, "b0", length=80, max_tokens=8)
    engine.step()
    add(engine, "b-big", length=60, start=100)
    add(engine, "a-small", start=200)
    run(engine)
    starts = first_steps(executor)
    assert starts["b-big"] <= starts["a-small"]


def test_held_request_says_that_its_tenant_runs_as_many_as_it_may() -> None:
    engine, _ = make_limited_engine(1)
    for name in ("a0", "a1"):
        add(engine, name)
    engine.step()
    add(engine, "a2")
    for name in ("a1", "a2"):
        event = engine.scheduler.requests[name].events[-1]
        assert (event.kind, event.reason) == (EventKind.HELD, WaitReason.TENANT_LIMIT)
        assert event.cause == "tenant a runs 1 request, as many as it may"


def test_seats_forget_a_tenant_that_runs_nothing() -> None:
    engine, _ = make_limited_engine(1)
    add(engine, "a0")
    run(engine)
    seats = engine.scheduler.seats
    assert (list(seats.num_running), seats.full) == ([], set())


def test_siblings_count_one_by_one_against_the_limit() -> None:
    engine, _ = make_limited_engine(2)
    add(engine, "a", length=30, max_tokens=6, n=5)
    assert run(engine)[A] == 2


def test_siblings_end_when_their_tenant_may_run_one() -> None:
    engine, executor = make_limited_engine(1, num_blocks=17, max_model_len=64)
    add(engine, "a", length=30, max_tokens=20, n=4)
    assert run(engine)[A] == 1
    assert {name for step in executor.steps for name in step} == {"a", "a#1", "a#2", "a#3"}


def test_preempted_request_leaves_its_seat_to_the_first_in_rank() -> None:
    engine, _ = make_limited_engine(2, num_blocks=16, max_model_len=64, enable_prefix_caching=False)
    for number in range(4):
        add(engine, f"a{number}", length=24, max_tokens=30, start=100 * number)
    requests = dict(engine.scheduler.requests)
    assert run(engine)[A] == 2
    assert engine.scheduler.num_preemptions > 0
    ends = [requests[f"a{number}"].events[-1].at_s for number in range(4)]
    assert ends == sorted(ends)


def test_tenant_states_tell_who_waits_for_what() -> None:
    engine, _ = make_limited_engine(
        1, num_blocks=16, max_model_len=64, enable_prefix_caching=False, max_num_seqs=3
    )
    add(engine, "a0", n=2)
    add(engine, "b0", length=40, max_tokens=2)
    engine.step()
    add(engine, "a1")
    add(engine, "b1", length=40)
    add(engine, "b2")
    add(engine, "c0", length=8, n=3)
    engine.step()
    states = {
        tenant_id: (state.num_running, dict(+state.num_waiting_by_reason))
        for tenant_id, state in engine.scheduler.tenant_states().items()
    }
    assert states == {
        "a": (1, {"tenant_limit": 2}),
        "b": (1, {"memory": 1, "queue": 1}),
        "c": (0, {"queue": 1, "sibling": 2}),
    }


def test_tenant_states_count_the_preempted_as_waiting_for_memory() -> None:
    engine, _ = make_limited_engine(3, num_blocks=16, max_model_len=64, enable_prefix_caching=False)
    for number in range(3):
        add(engine, f"b{number}", length=12, max_tokens=30, start=100 * number)
    while not engine.scheduler.num_preemptions:
        engine.step()
    (state,) = engine.scheduler.tenant_states().values()
    assert (state.num_running, dict(+state.num_waiting_by_reason)) == (2, {"memory": 1})


def test_tenant_states_keep_the_service_of_tenants_without_requests() -> None:
    engine, _ = make_limited_engine(1)
    add(engine, "a0", length=6, max_tokens=3)
    run(engine)
    (state,) = engine.scheduler.tenant_states().values()
    assert state.service_tokens == 6 + 2 * 3
    assert state.num_running == state.num_waiting_by_reason.total() == 0


def test_service_is_charged_as_it_is_rendered() -> None:
    engine, _ = make_engine(max_num_batched_tokens=10)
    add(engine, "a0", length=24, max_tokens=8)
    charged = []
    for _ in range(4):
        engine.step()
        charged.append(engine.scheduler.service.service_tokens(A))
    assert charged == [10, 20, 24 + 2, 24 + 4]


def test_service_is_free_for_cached_and_shared_prompts() -> None:
    engine, _ = make_engine()
    add(engine, "a0", length=30, max_tokens=1)
    run(engine)
    add(engine, "b0", length=30, max_tokens=1)
    add(engine, "c0", length=8, start=500, max_tokens=1, n=4)
    run(engine)
    assert engine.scheduler.service.num_prompt_tokens == {"a": 30, "b": 2, "c": 8 + 3}


def test_service_is_free_for_a_shared_prompt_that_was_taken_back() -> None:
    engine, executor = make_engine(
        policy="priority", num_blocks=12, max_model_len=48, enable_prefix_caching=False
    )
    add(engine, "p", length=12, max_tokens=1, n=2)
    engine.step()
    params = SamplingParams(max_tokens=1)
    engine.add_request("x", [1] * 45, params, priority=-1, tenant_id=TenantId("x"))
    run(engine)
    assert executor.steps[-1] == {"p#1": 12}, "the sibling computes the prompt by itself"
    assert engine.scheduler.service.num_prompt_tokens == {"p": 12 + 1, "x": 45}


def test_service_never_falls_when_half_a_prompt_is_computed_again() -> None:
    engine, _ = make_engine(
        num_blocks=16, max_num_batched_tokens=3, max_num_seqs=2, enable_prefix_caching=False
    )
    add(engine, "b0", length=16, max_tokens=40)
    add(engine, "c0", length=36, max_tokens=1, start=100)
    charged, preempted = [0], engine.scheduler.requests["c0"]
    while engine.has_work:
        engine.step()
        charged.append(engine.scheduler.service.num_prompt_tokens[TenantId("c")])
    assert preempted.num_preemptions == 1
    assert charged == sorted(charged)
    assert charged[-1] == 36


def test_service_is_not_charged_again_after_a_preemption() -> None:
    engine, _ = make_engine(num_blocks=16, max_model_len=64, enable_prefix_caching=False)
    for number, name in enumerate(("a0", "b0", "c0")):
        add(engine, name, length=12, max_tokens=30, start=100 * number)
    run(engine)
    scheduler = engine.scheduler
    assert scheduler.num_preemptions > 0
    assert set(scheduler.service.num_prompt_tokens.values()) == {12}
    assert set(scheduler.service.num_output_tokens.values()) == {30}
    assert {key[:2] for key in scheduler.preemption_counts} == {("recompute", "memory")}
    assert scheduler.preemption_counts.total() == scheduler.num_preemptions
