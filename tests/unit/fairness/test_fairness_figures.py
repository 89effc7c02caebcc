from __future__ import annotations

import pytest

from evenflow.core.ids import TenantId
from evenflow.fairness.report import jain_index, max_min_shares, service_gap, service_gap_bound
from evenflow.fairness.service import ServiceLedger

A, B = TenantId("a"), TenantId("b")


def test_service_weighs_output_twice() -> None:
    ledger = ServiceLedger()
    ledger.num_prompt_tokens[A] += 10
    ledger.num_output_tokens[A] += 3
    assert ledger.service_tokens(A) == 16.0


def test_service_of_a_stranger_is_nothing_and_leaves_no_trace() -> None:
    ledger = ServiceLedger()
    ledger.num_output_tokens[A] += 1
    assert ledger.service_tokens(B) == 0.0
    assert ledger.tenants() == {A}


@pytest.mark.parametrize(
    ("shares", "index"),
    [
        ([], 1.0),
        ([0.0, 0.0], 1.0),
        ([7.0], 1.0),
        ([5.0, 5.0, 5.0], 1.0),
        ([1.0, 0.0, 0.0, 0.0], 0.25),
        ([3.0, 3.0, 0.0, 0.0], 0.5),
        ([1.0, 2.0, 3.0], 36 / 42),
    ],
)
def test_jain_index_is_the_square_of_the_mean_over_the_mean_of_squares(
    shares: list[float], index: float
) -> None:
    assert jain_index(shares) == pytest.approx(index)


def test_jain_index_does_not_depend_on_the_unit() -> None:
    assert jain_index([1e9, 2e9, 4e9]) == pytest.approx(jain_index([1.0, 2.0, 4.0]))


@pytest.mark.parametrize(("shares", "gap"), [([], 0.0), ([4.0], 0.0), ([4.0, 1.5, 2.0], 2.5)])
def test_service_gap_is_the_widest_difference(shares: list[float], gap: float) -> None:
    assert service_gap(shares) == gap


@pytest.mark.parametrize(
    ("demands", "shares"),
    [
        ((1e9, 1e9, 1e9), (25.0, 25.0, 50.0)),
        ((1e9, 1e9, 10.0), (45.0, 45.0, 10.0)),
        ((5.0, 1e9, 1e9), (5.0, 95 / 3, 190 / 3)),
        ((5.0, 10.0, 20.0), (5.0, 10.0, 20.0)),
    ],
)
def test_max_min_shares_divide_by_weight_what_others_leave(
    demands: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    weights = {"a": 1.0, "b": 1.0, "c": 2.0}
    divided = max_min_shares(100.0, dict(zip("abc", demands, strict=True)), weights)
    assert [divided[tenant] for tenant in "abc"] == pytest.approx(shares)


def test_service_gap_bound_is_the_sum_of_what_each_may_be_ahead() -> None:
    bound = service_gap_bound(
        (1.0, 2.0),
        max_num_seqs=4,
        max_num_batched_tokens=32,
        longest_prompt=10,
        longest_output=5,
    )
    assert bound == 1.5 * (52 + 2 * 4 * 5)
