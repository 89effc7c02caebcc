from __future__ import annotations

import random

from evenflow.core.ids import RequestId, TenantId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.fairness.counters import VirtualCounters
from evenflow.fairness.service import VTC_CHARGES, ServiceLedger
from evenflow.fairness.tenants import TenantDirectory
from evenflow.scheduling.policies.priority import Priority
from evenflow.scheduling.policies.vtc import Vtc
from evenflow.scheduling.policy import Policy, SchedulingView
from evenflow.scheduling.waiting import WaitingQueue

TENANTS = [TenantId(name) for name in "abc"]
NOW = SchedulingView(0.0, {})


class Ageing(Priority):
    """Ranks turn around at time 10."""

    rank_changes_with_time = True

    def rank(self, requests, view):
        sign = 1 if view.now_s < 10 else -1
        return [(sign * request.priority,) for request in requests]


def counted(of_a: float, of_b: float) -> SchedulingView:
    return SchedulingView(0.0, {TENANTS[0]: of_a, TENANTS[1]: of_b})


def make_queue(policy: Policy) -> WaitingQueue:
    return WaitingQueue(policy, VirtualCounters(ServiceLedger(), VTC_CHARGES, TenantDirectory()))


def make_request(number: int, priority: int, tenant_id: TenantId) -> Request:
    return Request(
        RequestId(f"r{number}"),
        [1],
        SamplingParams(),
        max_num_tokens=2,
        sequence_number=number,
        priority=priority,
        tenant_id=tenant_id,
    )


def rank(request: Request) -> tuple[int, int]:
    return request.priority, request.sequence_number


def test_first_is_the_first_in_rank_of_the_tenants_that_count() -> None:
    rng = random.Random(0)
    queue = make_queue(Priority())
    inside: list[Request] = []
    for number in range(400):
        if inside and rng.random() < 0.4:
            request = inside.pop(rng.randrange(len(inside)))
            queue.remove(request)
        else:
            request = make_request(number, rng.randrange(5), rng.choice(TENANTS))
            queue.push(request, NOW)
            inside.append(request)
        passed_over = {tenant_id for tenant_id in TENANTS if rng.random() < 0.3}
        eligible = [r for r in inside if r.tenant_id not in passed_over]
        assert queue.first(NOW, passed_over) is min(eligible, key=rank, default=None)
        for tenant_id in TENANTS:
            own = [r for r in inside if r.tenant_id == tenant_id]
            assert queue.first_of(tenant_id) is min(own, key=rank, default=None)
            assert queue.by_tenant().get(tenant_id, []) == sorted(own, key=rank)
        assert len(queue) == len(inside)
        assert set(queue) == set(inside)


def test_remove_of_a_request_that_does_not_wait_does_nothing() -> None:
    queue = make_queue(Priority())
    queue.push(make_request(0, 0, TENANTS[0]), NOW)
    queue.remove(make_request(1, 0, TENANTS[0]))
    queue.remove(make_request(2, 0, TENANTS[1]))
    assert len(queue) == 1


def test_refresh_ranks_everybody_anew_when_ranks_change_with_time() -> None:
    queue = make_queue(Ageing())
    requests = [make_request(number, number, TENANTS[number % 2]) for number in range(4)]
    for request in requests:
        queue.push(request, NOW)
    assert queue.first(NOW) is requests[0]
    queue.refresh(SchedulingView(10.0, {}))
    assert queue.first(NOW) is requests[3]
    assert queue.first_of(TENANTS[0]) is requests[2]
    queue.remove(requests[3])
    assert queue.first(NOW) is requests[2]


def test_first_is_of_the_tenant_with_the_smallest_counter_however_that_changes() -> None:
    queue = make_queue(Vtc())
    requests = [make_request(number, -number, TENANTS[number % 2]) for number in range(4)]
    for request in requests:
        queue.push(request, NOW)
    assert queue.first(counted(2.0, 3.0)) is requests[2]
    assert queue.first(counted(2.0, 1.0)) is requests[3]
    assert queue.first(counted(1.0, 1.0)) is requests[3]


def test_push_lifts_a_tenant_that_did_not_wait_and_no_other() -> None:
    service = ServiceLedger()
    counters = VirtualCounters(service, VTC_CHARGES, TenantDirectory())
    queue = WaitingQueue(Vtc(), counters)
    queue.push(make_request(0, 0, TENANTS[0]), NOW)
    service.num_prompt_tokens[TENANTS[0]] += 70
    queue.push(make_request(1, 0, TENANTS[1]), NOW)
    assert counters[TENANTS[1]] == 70
    service.num_prompt_tokens[TENANTS[0]] += 30
    queue.push(make_request(2, 0, TENANTS[1]), NOW)
    queue.rerank(queue.first_of(TENANTS[1]), NOW)
    assert counters[TENANTS[1]] == 70
