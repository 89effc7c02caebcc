from __future__ import annotations

import pytest

from evenflow.core.errors import IntegrityError, QueueFullError, RateLimitError
from evenflow.core.ids import TenantId
from evenflow.fairness.tenants import Tenant, TenantDirectory, TenantLimits
from evenflow.scheduling.admission import (
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    RETRY_AFTER_WITHOUT_DATA_S,
    AdmissionControl,
)

A, B = TenantId("a"), TenantId("b")


def make_admission(
    max_requests: int = 100, max_tokens: int | None = None, **limits: int
) -> AdmissionControl:
    """Return an admission control where tenant a, alone, has limits of its own."""
    directory = TenantDirectory([Tenant(A, TenantLimits(**limits))])
    return AdmissionControl(max_requests, max_tokens, directory)


def fill(admission: AdmissionControl, count: int, tenant: TenantId = A, tokens: int = 1) -> None:
    for number in range(count):
        name = f"{tenant}{number}"
        assert admission.offer(tenant, tokens, 0.0) is None
        admission.queued(name, tenant, tokens)


def test_offer_refuses_when_as_many_requests_wait_as_may() -> None:
    admission = make_admission(max_requests=3)
    fill(admission, 3)
    for tenant in (A, B):
        refusal = admission.offer(tenant, 1, 0.0)
        assert isinstance(refusal, QueueFullError)
        assert refusal.code == "queue_full"
        assert "the queue is full. 3 requests may wait, and no more" in str(refusal)


def test_offer_counts_tokens_that_wait() -> None:
    admission = make_admission(max_tokens=10)
    fill(admission, 2, tokens=4)
    assert admission.offer(B, 2, 0.0) is None
    refusal = admission.offer(B, 3, 0.0)
    assert isinstance(refusal, QueueFullError)
    assert "8 prompt tokens wait and 10 may; the request has at least 3" in str(refusal)


@pytest.mark.parametrize("limit", ["max_tokens", "max_queued_tokens"])
def test_offer_lets_a_request_of_any_length_into_an_empty_queue(limit: str) -> None:
    admission = make_admission(**{limit: 10})
    assert admission.offer(A, 1000, 0.0) is None
    admission.queued("long", A, 1000)
    assert admission.offer(A, 1, 0.0) is not None


@pytest.mark.parametrize("limits", [{"max_queued_requests": 2}, {"max_queued_tokens": 6}])
def test_offer_holds_a_tenant_to_its_own_limits_and_nobody_else(limits: dict[str, int]) -> None:
    admission = make_admission(**limits)
    fill(admission, 2, A, tokens=3)
    refusal = admission.offer(A, 3, 0.0)
    assert isinstance(refusal, QueueFullError)
    assert "the queue of tenant a is full" in str(refusal)
    fill(admission, 50, B, tokens=3)


@pytest.mark.parametrize("leave", ["started", "ended"])
def test_offer_accepts_again_when_a_request_has_left_the_queue(leave: str) -> None:
    admission = make_admission(max_requests=2)
    fill(admission, 2)
    assert admission.offer(A, 1, 0.0) is not None
    if leave == "started":
        admission.started("a0", 1.0)
    else:
        admission.ended("a0", 0, 1.0)
    assert admission.offer(A, 1, 1.0) is None
    admission.check_integrity()


def test_started_and_ended_count_a_request_once() -> None:
    admission = make_admission()
    fill(admission, 3, tokens=5)
    for _ in range(2):
        admission.started("a0", 1.0)
    for _ in range(2):
        admission.ended("a0", 7, 2.0)
    admission.started("a0", 3.0)
    admission.started("nobody", 3.0)
    admission.ended("nobody", 7, 3.0)
    admission.check_integrity()
    assert (admission.num_queued_reqs, admission.num_queued_tokens) == (2, 10)


def test_queued_refuses_an_id_that_is_alive() -> None:
    admission = make_admission()
    fill(admission, 1)
    with pytest.raises(IntegrityError, match="a0 was queued twice"):
        admission.queued("a0", A, 1)


def retry_after_s(admission: AdmissionControl, now_s: float) -> float:
    refusal = admission.offer(A, 1, now_s)
    assert refusal is not None
    assert f"Try again in {refusal.retry_after_s:.0f} s" in str(refusal)
    return refusal.retry_after_s


def test_retry_after_is_the_time_the_queue_takes_to_empty_at_the_measured_rate() -> None:
    admission = make_admission(max_requests=20)
    fill(admission, 20)
    for number in range(10):  # two a second
        admission.started(f"a{number}", number / 2)
    for number in range(10):
        admission.queued(f"again{number}", A, 1)
    assert retry_after_s(admission, 5.0) == 10.0


def test_retry_after_is_a_guess_before_anything_was_measured() -> None:
    admission = make_admission(max_requests=1)
    fill(admission, 1)
    assert retry_after_s(admission, 0.0) == RETRY_AFTER_WITHOUT_DATA_S


def test_retry_after_forgets_what_left_long_ago() -> None:
    admission = make_admission(max_requests=2)
    fill(admission, 2)
    for name in ("a0", "a1"):
        admission.started(name, 0.0)
    for name in ("x", "y"):
        admission.queued(name, A, 1)
    assert retry_after_s(admission, 30.0) < MAX_RETRY_AFTER_S
    assert retry_after_s(admission, 30.1) == RETRY_AFTER_WITHOUT_DATA_S


@pytest.mark.parametrize(
    ("num_queued", "num_departures", "expected"),
    [(1, 200, MIN_RETRY_AFTER_S), (1000, 2, MAX_RETRY_AFTER_S)],
)
def test_retry_after_stays_within_its_bounds(
    num_queued: int, num_departures: int, expected: float
) -> None:
    admission = make_admission(max_requests=num_queued)
    for number in range(num_departures):
        admission.queued(f"gone{number}", A, 1)
        admission.started(f"gone{number}", 10.0)
    fill(admission, num_queued)
    assert retry_after_s(admission, 20.0) == expected


def test_rate_limit_refuses_when_the_tokens_of_the_minute_are_used() -> None:
    admission = make_admission(tokens_per_minute=600)
    assert admission.offer(A, 500, 0.0) is None
    assert admission.offer(A, 100, 0.0) is None
    refusal = admission.offer(A, 50, 0.0)
    assert isinstance(refusal, RateLimitError)
    assert refusal.code == "rate_limit_exceeded"
    assert refusal.retry_after_s == 5.0  # ten a second
    assert "may use 600 a minute and has 0 left; the request has at least 50" in str(refusal)
    assert admission.offer(B, 10_000, 0.0) is None


def test_rate_limit_refills_evenly_and_never_above_a_minutes_worth() -> None:
    admission = make_admission(tokens_per_minute=600)
    assert admission.offer(A, 600, 0.0) is None
    assert admission.offer(A, 50, 4.9) is not None
    assert admission.offer(A, 50, 5.0) is None
    assert admission.offer(A, 600, 1000.0) is None
    assert admission.offer(A, 1, 1000.0) is not None


def test_rate_limit_charges_output_at_the_end_and_waits_for_the_debt() -> None:
    admission = make_admission(tokens_per_minute=600)
    assert admission.offer(A, 100, 0.0) is None
    admission.queued("a", A, 100)
    admission.ended("a", 1700, 0.0)
    refusal = admission.refuse_early(A, 0.0)
    assert isinstance(refusal, RateLimitError)
    assert refusal.retry_after_s == 121.0  # 1200 in debt, and one token for the request


def test_rate_limit_charges_no_refused_request() -> None:
    admission = make_admission(tokens_per_minute=600, max_queued_requests=1)
    fill(admission, 1)
    for _ in range(100):
        assert isinstance(admission.offer(A, 599, 0.0), QueueFullError)
    admission.started("a0", 0.0)
    assert admission.offer(A, 599, 0.0) is None


def test_rate_limit_lets_a_prompt_longer_than_a_minutes_worth_through_when_all_is_there() -> None:
    admission = make_admission(tokens_per_minute=60)
    assert admission.offer(A, 1, 0.0) is None
    refusal = admission.offer(A, 600, 0.0)
    assert refusal is not None
    assert refusal.retry_after_s == 1.0
    assert admission.offer(A, 600, 1.0) is None
    refusal = admission.offer(A, 1, 1.0)
    assert refusal is not None
    assert refusal.retry_after_s == 541.0


def test_refuse_early_changes_nothing() -> None:
    admission = make_admission(max_requests=1, tokens_per_minute=60)
    for _ in range(1000):
        assert admission.refuse_early(A, 0.0) is None
    assert admission.offer(A, 60, 0.0) is None
    admission.check_integrity()
