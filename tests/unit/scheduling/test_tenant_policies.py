from __future__ import annotations

from random import Random

import pytest

from evenflow.core.clock import VirtualClock
from evenflow.core.ids import RequestId, TenantId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.fairness.tenants import Tenant, TenantDirectory, TenantLimits
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.residency import Residency
from evenflow.memory.transfers import Tier
from evenflow.scheduling.policies.fcfs import Fcfs
from evenflow.scheduling.policies.priority import Priority
from evenflow.scheduling.policies.vtc import Vtc
from evenflow.scheduling.policy import SchedulingView, load_policy
from evenflow.scheduling.scheduler import Scheduler
from evenflow.scheduling.switching import SwitchOptions
from support.kv_checking_executor import KVCheckingExecutor
from support.scripted_engine import VOCAB_SIZE, RecordingExecutor, make_engine, scripted_token
from support.slot_transfers import SlotTransfers

A, B = TenantId("a"), TenantId("b")


def make_request(tenant_id: TenantId, priority: int = 0, length: int = 10) -> Request:
    return Request(
        RequestId(f"{tenant_id}{priority}"),
        [1] * length,
        SamplingParams(),
        max_num_tokens=99,
        priority=priority,
        tenant_id=tenant_id,
    )


def add(engine: Engine, name: str, *, length: int = 4, max_tokens: int = 4, priority: int = 0):
    """Queue a request of the tenant that its name begins with, whose prompt is like no other."""
    prompt = [sum(name.encode()) * 131 % 991, *range(length - 1)]
    params = SamplingParams(max_tokens=max_tokens)
    engine.add_request(name, prompt, params, tenant_id=TenantId(name[0]), priority=priority)


def run(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
        engine.scheduler.check_integrity()


def held_token_s(policy: str) -> float:
    """Serve 8 prompt and 3 output tokens in steps of 2 s; return the memory that was charged."""
    engine, executor = make_engine(policy=policy)
    execute = executor.execute
    executor.execute = lambda plan: engine._clock.advance(2.0) or execute(plan)
    add(engine, "a0", length=8, max_tokens=3)
    engine._clock.advance(1.0)
    run(engine)
    return engine.scheduler.service.held_token_s[A]


def starts(executor: RecordingExecutor) -> list[str]:
    return list(dict.fromkeys(name for step in executor.steps for name in step))


def test_vtc_takes_tenants_in_turn_however_many_requests_one_has() -> None:
    engine, executor = make_engine(policy="vtc", max_num_seqs=1)
    for name in ("a0", "a1", "a2", "a3", "b0", "b1"):
        add(engine, name)
    run(engine)
    assert starts(executor) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_vtc_divides_the_seats_of_one_step() -> None:
    engine, executor = make_engine(policy="vtc", max_num_seqs=4)
    for name in ("a0", "a1", "a2", "a3", "b0", "b1"):
        add(engine, name)
    engine.step()
    assert set(executor.steps[0]) == {"a0", "b0", "a1", "b1"}


def test_vtc_serves_by_weight() -> None:
    directory = TenantDirectory([Tenant(B, TenantLimits(weight=3.0))])
    engine, executor = make_engine(policy="vtc", max_num_seqs=1, directory=directory)
    for number in range(8):
        add(engine, f"a{number}")
        add(engine, f"b{number}")
    run(engine)
    assert [name[0] for name in starts(executor)[:8]].count("b") == 6


def test_vtc_serves_a_tenants_requests_by_priority_then_arrival() -> None:
    engine, executor = make_engine(policy="vtc", max_num_seqs=1)
    for name, priority in (("a0", 5), ("a1", 1), ("a2", 1), ("b0", 9)):
        add(engine, name, priority=priority)
    run(engine)
    assert starts(executor) == ["a1", "b0", "a2", "a0"]


def test_vtc_gives_no_credit_for_time_away() -> None:
    engine, executor = make_engine(policy="vtc", max_num_seqs=1)
    for number in range(5):
        add(engine, f"a{number}")
    for _ in range(12):
        engine.step()
    for number in range(3):
        add(engine, f"b{number}")
    run(engine)
    assert "".join(name[0] for name in starts(executor)) == "aaaababb"


def test_vtc_preempts_the_tenant_that_had_most() -> None:
    engine, _ = make_engine(
        policy="vtc", num_blocks=16, max_model_len=64, enable_prefix_caching=False
    )
    add(engine, "a0", length=20, max_tokens=30)
    engine.step()
    add(engine, "b0", length=8, max_tokens=30)
    requests = dict(engine.scheduler.requests)
    run(engine)
    assert (requests["a0"].num_preemptions, requests["b0"].num_preemptions) == (1, 0)


def test_fair_charges_memory_held_and_vtc_does_not() -> None:
    assert held_token_s("vtc") == 0.0
    assert held_token_s("fair") == 2.0 * (0 + 8 + 9)


def test_fair_charges_tokens_that_are_computed_again() -> None:
    engine, _ = make_engine(
        policy="fair", num_blocks=16, max_model_len=64, enable_prefix_caching=False
    )
    add(engine, "a0", length=20, max_tokens=30)
    engine.step()
    add(engine, "b0", length=8, max_tokens=30)
    victim = engine.scheduler.requests["a0"]
    while not victim.num_preemptions:
        engine.step()
    num_lost = victim.num_tokens - 1
    run(engine)
    service = engine.scheduler.service
    assert service.num_recomputed_tokens == {A: num_lost}
    assert engine.scheduler.counters[A] >= service.service_tokens(A) + num_lost


def test_service_counts_the_kv_that_is_swapped() -> None:
    executor = KVCheckingExecutor(scripted_token, 4)
    transfers = SlotTransfers(executor.store, 4, Random(0))
    scheduler = Scheduler(
        load_policy("fair"),
        KVCacheManager(16, 4, residency=Residency(transfers, LowerTier(Tier.HOST, 60))),
        max_num_seqs=8,
        max_num_batched_tokens=32,
        switching=SwitchOptions(mode="swap", write_back=False, keep_head=False, prefetch=False),
    )
    engine = Engine(scheduler, executor, VirtualClock(), ModelLimits(64, VOCAB_SIZE))
    add(engine, "a0", length=20, max_tokens=30)
    add(engine, "b0", length=8, max_tokens=30)
    run(engine)
    num_bytes = sum(scheduler.service.num_swapped_bytes.values())
    assert scheduler.num_preemptions > 0
    assert num_bytes == transfers.num_blocks_moved * transfers.bytes_per_block > 0


def test_promise_ends_with_the_request() -> None:
    engine, _ = make_engine(policy="vtc", max_num_batched_tokens=9)
    add(engine, "a0", length=30)
    engine.step()
    service = engine.scheduler.service
    assert (service.num_prompt_tokens[A], service.num_promised_tokens[A]) == (9, 21)
    engine.abort("a0")
    assert (service.num_prompt_tokens[A], service.num_promised_tokens[A]) == (9, 0)


@pytest.mark.parametrize(
    ("policy", "candidate", "resident", "answer"),
    [
        (Fcfs(), make_request(A, -5), make_request(B), False),
        (Priority(), make_request(A, -1), make_request(B), True),
        (Priority(), make_request(A), make_request(B), False),
        (Vtc(), make_request(A), make_request(B), True),
        (Vtc(), make_request(A, length=45), make_request(B), False),
        (Vtc(), make_request(B, -5), make_request(A), False),
        (Vtc(), make_request(A, -5), make_request(A), True),
        (Vtc(), make_request(A), make_request(A), False),
    ],
)
def test_displaces_only_for_a_lead_that_is_worth_a_switch(
    policy: Fcfs, candidate: Request, resident: Request, answer: bool
) -> None:
    view = SchedulingView(0.0, {A: 100.0, B: 100.0 + Vtc.quantum + 40})
    assert policy.displaces(candidate, resident, view) is answer
