from __future__ import annotations

import pytest

from evenflow.core.ids import TenantId
from evenflow.fairness.report import jain_index, service_gap
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
