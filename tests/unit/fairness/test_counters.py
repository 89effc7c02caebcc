from __future__ import annotations

from evenflow.core.ids import TenantId
from evenflow.fairness.counters import VirtualCounters
from evenflow.fairness.service import VTC_CHARGES, Charges, ServiceLedger
from evenflow.fairness.tenants import Tenant, TenantDirectory, TenantLimits

A, B, C = (TenantId(name) for name in "abc")


def make_counters(
    charges: Charges = VTC_CHARGES, **weights: float
) -> tuple[ServiceLedger, VirtualCounters]:
    service = ServiceLedger()
    directory = TenantDirectory(
        Tenant(TenantId(name), TenantLimits(weight=weight)) for name, weight in weights.items()
    )
    return service, VirtualCounters(service, charges, directory)


def test_counter_is_service_per_weight() -> None:
    service, counters = make_counters(a=4.0)
    service.num_prompt_tokens[A] += 10
    service.num_output_tokens[A] += 3
    assert (counters[A], counters[B]) == (4.0, 0.0)


def test_counter_includes_prompts_that_are_promised() -> None:
    service, counters = make_counters()
    service.num_promised_tokens[A] += 7
    assert counters[A] == 7.0
    assert service.service_tokens(A) == 0.0


def test_counter_charges_what_the_policy_charges() -> None:
    charges = Charges(recomputed_token=0.5, swapped_mib=3.0, held_token_s=0.1)
    service, counters = make_counters(charges)
    service.num_recomputed_tokens[A] += 10
    service.num_swapped_bytes[A] += 2**21
    service.held_token_s[A] += 50.0
    assert counters[A] == 5.0 + 6.0 + 5.0
    assert service.service_tokens(A) == 0.0


def test_come_back_lifts_to_the_smallest_counter_of_those_who_wait() -> None:
    service, counters = make_counters(a=2.0)
    service.num_prompt_tokens[A] += 200
    service.num_prompt_tokens[B] += 130
    counters.come_back(C, [A, B])
    assert counters[C] == 100.0


def test_come_back_lifts_to_the_last_turn_when_nobody_waits() -> None:
    service, counters = make_counters()
    service.num_prompt_tokens[A] += 80
    counters.take_turn(A)
    service.num_prompt_tokens[A] += 20
    counters.come_back(B, [])
    assert counters[B] == 80.0


def test_come_back_lowers_nobody() -> None:
    service, counters = make_counters()
    service.num_prompt_tokens[A] += 80
    counters.come_back(A, [B])
    assert counters[A] == 80.0


def test_come_back_lifts_no_lower_than_before() -> None:
    service, counters = make_counters()
    service.num_prompt_tokens[A] += 80
    counters.take_turn(A)
    counters.come_back(B, [C])
    assert counters[B] == 80.0


def test_lift_is_not_service() -> None:
    service, counters = make_counters()
    service.num_prompt_tokens[A] += 80
    counters.come_back(B, [A])
    assert service.service_tokens(B) == 0.0
    assert service.tenants() == {A}
