from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evenflow.bench.metrics import summarize
from evenflow.bench.simulated.summary import summarize_simulation
from evenflow.simulation.result import SimulationResult
from support.load_records import record
from support.simulated_runs import a_result


def summary(result: SimulationResult, price: float | None = None, **slo: float) -> dict[str, Any]:
    return summarize_simulation(result, percentiles=(50.0, 99.0), goodput=slo, price_per_hour=price)


def test_summary_has_every_figure_of_a_measured_run() -> None:
    measured = summarize([record(0.0, 1.0, 2.0)], 2.0, (50.0, 99.0), {})
    assert measured.keys() <= summary(a_result((0.0, 1.0, 2.0, 10, 2))).keys()


def test_summary_equals_that_of_a_measured_run_with_the_same_times() -> None:
    records = [record(1.0, 1.5, 1.6, 1.7), record(2.0, 2.1, 2.3, num_prompt=20)]
    measured = summarize(records, 1.3, (50.0, 99.0), {"ttft": 200.0})
    simulated = summary(
        a_result(
            (1.0, 1.5, 1.7, 10, 3),
            (2.0, 2.1, 2.3, 20, 2),
            itl_s=np.array([0.1, 0.2]),
            itl_counts=np.array([2, 1]),
        ),
        ttft=200.0,
    )
    for key, value in measured.items():
        assert simulated[key] == pytest.approx(value), key


def test_duration_begins_with_the_first_arrival() -> None:
    figures = summary(a_result((100.0, 101.0, 104.0, 10, 3)))
    assert figures["duration"] == 4.0
    assert figures["output_throughput"] == pytest.approx(0.75)


def test_rejected_requests_are_failed_and_miss_the_objectives() -> None:
    result = a_result(
        (0.0, 1.0, 2.0, 10, 2), (0.5, math.nan, 0.5, 999, 0), reasons=("length", "rejected")
    )
    figures = summary(result, ttft=5000.0)
    assert (figures["completed"], figures["failed"]) == (1, 1)
    assert figures["slo_attainment_ratio"] == 0.5
    assert figures["errors_by_kind"]["rejected"]["count"] == 1
    assert "--max-model-len" in figures["errors_by_kind"]["rejected"]["first_message"]


def test_attainment_is_told_of_all_objectives_and_of_each() -> None:
    result = a_result((0.0, 1.0, 2.0, 10, 3), (0.0, 3.0, 3.2, 10, 3))
    figures = summary(result, ttft=2000.0, tpot=400.0)
    assert figures["slo_attainment_ratio_ttft"] == 0.5
    assert figures["slo_attainment_ratio_tpot"] == 0.5
    assert figures["slo_attainment_ratio"] == 0.0
    assert figures["request_goodput"] == 0.0


def test_attainment_is_none_without_objectives() -> None:
    assert summary(a_result((0.0, 1.0, 2.0, 10, 3)))["slo_attainment_ratio"] is None


def test_cost_is_that_of_the_time_by_tokens() -> None:
    figures = summary(a_result((0.0, 1.0, 36.0, 30, 10)), price=2.0)
    assert figures["cost"] == pytest.approx(0.02)
    assert figures["cost_per_million_tokens"] == pytest.approx(0.02 / 40 * 1e6)
    assert figures["cost_per_million_output_tokens"] == pytest.approx(0.02 / 10 * 1e6)


def test_cost_is_left_out_when_no_price_is_known() -> None:
    assert "cost" not in summary(a_result((0.0, 1.0, 2.0, 10, 3)))


def test_preemptions_are_summed_by_mode() -> None:
    result = a_result(
        (0.0, 1.0, 2.0, 10, 3),
        num_preemptions=np.array([3]),
        preemption_counts={("recompute", "memory", "a"): 2, ("recompute", "memory", "b"): 1},
    )
    assert summary(result)["num_preemptions"] == 3
    assert summary(result)["num_preemptions_recompute"] == 3


def test_memory_and_prefix_cache_are_told_as_shares() -> None:
    result = a_result(
        (0.0, 1.0, 2.0, 30, 3), (0.0, 1.0, 2.0, 10, 3), num_cached_tokens=np.array([20, 0])
    )
    assert summary(result)["peak_kv_usage_ratio"] == 0.75
    assert summary(result)["prefix_cache_hit_ratio"] == 0.5


def test_tenants_are_left_out_when_there_is_nobody_in_particular() -> None:
    assert "tenants" not in summary(a_result((0.0, 1.0, 2.0, 10, 3)))


def test_fairness_is_judged_while_all_tenants_have_requests() -> None:
    # Of both, a prompt of 10 and 3 of 5 tokens by 2 s, when the last request of b ends.
    result = a_result(
        (0.0, 1.0, 3.0, 10, 5), (0.0, 1.0, 2.0, 10, 3), tenants=("a", "b"), reasons=()
    )
    figures = summary(result, ttft=100.0)
    services = {name: tenant["service_tokens"] for name, tenant in figures["tenants"].items()}
    assert services == {"a": pytest.approx(16.0), "b": pytest.approx(16.0)}
    assert figures["jain_index"] == pytest.approx(1.0)
    assert figures["service_gap_tokens"] == pytest.approx(0.0)
    assert figures["tenants"]["a"]["slo_attainment_ratio"] == 0.0


def test_tenants_have_the_figures_of_their_own_requests() -> None:
    result = a_result(
        (0.0, 1.0, 2.0, 10, 2),
        (0.0, 3.0, 5.0, 10, 2),
        (1.0, 3.0, 4.0, 10, 2),
        tenants=("b", "a", "b"),
        num_preemptions=np.array([0, 2, 1]),
    )
    tenants = summary(result)["tenants"]
    assert list(tenants) == ["a", "b"]
    assert [tenants[name]["completed"] for name in "ab"] == [1, 2]
    assert tenants["b"]["mean_ttft_ms"] == pytest.approx(1500)
    assert tenants["b"]["num_preemptions"] == 1
    assert tenants["a"]["mean_itl_ms"] is None


def test_tenant_without_a_completed_request_was_served_nothing() -> None:
    result = a_result(
        (0.0, 1.0, 2.0, 10, 2),
        (0.0, math.nan, 1.5, 10, 0),
        tenants=("a", "b"),
        reasons=("length", "timeout"),
    )
    figures = summary(result)
    assert figures["tenants"]["b"]["service_tokens"] == 0.0
    assert figures["jain_index"] == pytest.approx(0.5)
