from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evenflow.bench.metrics import (
    Completed,
    concurrency,
    failures,
    figures,
    summarize,
    tokens_per_second,
)
from evenflow.bench.tenants import by_tenant
from evenflow.workloads.client import Failure, RequestRecord
from support.load_records import record

REFUSED = Failure("http_429", "full")


def summary(*records: RequestRecord, duration_s: float = 10.0, **goodput: float) -> dict[str, Any]:
    return summarize(records, duration_s, (50.0, 99.9), goodput)


def test_latencies_follow_their_definitions() -> None:
    figures = summary(record(1.0, 1.5, 1.6, 1.9, 2.0))
    assert figures["mean_ttft_ms"] == pytest.approx(500)
    assert figures["mean_e2el_ms"] == pytest.approx(1000)
    assert figures["mean_tpot_ms"] == pytest.approx(500 / 3)
    assert figures["median_itl_ms"] == pytest.approx(100)
    assert figures["p99.9_itl_ms"] == pytest.approx(300, rel=0.01)


def test_tpot_counts_tokens_and_itl_chunks_when_a_chunk_has_several() -> None:
    figures = summary(record(0.0, 1.0, 2.0, tokens=11))
    assert figures["mean_tpot_ms"] == pytest.approx(100)
    assert figures["mean_itl_ms"] == pytest.approx(1000)


def test_tpot_leaves_out_answers_of_one_token() -> None:
    figures = summary(record(0.0, 1.0), record(0.0, 1.0, 3.0))
    assert figures["mean_tpot_ms"] == pytest.approx(2000)


def test_waiting_in_the_client_is_no_part_of_the_servers_latency() -> None:
    figures = summary(record(5.0, 6.0, due_s=2.0))
    assert figures["mean_ttft_ms"] == pytest.approx(1000)
    assert figures["mean_client_queue_time_ms"] == pytest.approx(3000)


def test_rates_are_per_second_of_the_run() -> None:
    figures = summary(record(0.0, 1.0, 2.0, num_prompt=30), record(0.0, 1.0, num_prompt=20))
    assert figures["request_throughput"] == pytest.approx(0.2)
    assert figures["output_throughput"] == pytest.approx(0.3)
    assert figures["total_token_throughput"] == pytest.approx(5.3)


def test_failed_requests_count_as_failed_only() -> None:
    figures = summary(record(0.0, 1.0), record(0.0, 4.0, failure=REFUSED))
    assert (figures["completed"], figures["failed"]) == (1, 1)
    assert (figures["total_output_tokens"], figures["mean_ttft_ms"]) == (1, 1000.0)


def test_figures_are_none_when_nothing_was_measured() -> None:
    figures = summary(record(0.0, failure=REFUSED))
    assert figures["mean_ttft_ms"] is None
    assert figures["p99.9_itl_ms"] is None
    assert figures["max_output_tokens_per_s"] == 0.0


@pytest.mark.parametrize(
    ("goodput", "num_good"),
    [
        ({"ttft": 1000.0}, 3),
        ({"ttft": 999.0}, 1),
        ({"tpot": 500.0}, 2),
        ({"ttft": 1000.0, "tpot": 500.0}, 2),
        ({"e2el": 1000.0}, 2),
        ({"ttft": 0.1, "tpot": 0.1, "e2el": 0.1}, 0),
    ],
)
def test_goodput_counts_requests_that_meet_all_objectives(
    goodput: dict[str, float], num_good: int
) -> None:
    records = (
        record(0.0, 1.0),
        record(0.0, 0.5, 1.0),
        record(0.0, 1.0, 1.6),
        record(0.0, 0.1, failure=REFUSED),
    )
    assert summary(*records, **goodput)["request_goodput"] == pytest.approx(num_good / 10)


def test_goodput_is_none_without_objectives() -> None:
    assert summary(record(0.0, 1.0))["request_goodput"] is None


def test_tokens_are_counted_by_second_from_the_first_sending() -> None:
    records = [record(10.0, 10.5, 11.2, 11.4), record(10.5, 12.1, tokens=8)]
    assert tokens_per_second(records).tolist() == [1.0, 2.0, 8.0]


def test_concurrency_does_not_overlap_requests_that_follow_each_other() -> None:
    times, counts = concurrency(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 3.0]))
    assert counts.max() == 2
    assert (times[-1], counts[-1]) == (3.0, 0)


def columns(gaps: list[float], counts: list[int]) -> Completed:
    """Return two requests, with the gaps between tokens given."""
    return Completed(
        start_s=np.array([0.0, 1.0]),
        first_s=np.array([1.0, 1.5]),
        end_s=np.array([3.0, 2.0]),
        queue_s=np.zeros(2),
        num_prompt_tokens=np.array([5, 7]),
        num_output_tokens=np.array([3, 1]),
        gap_s=np.array(gaps),
        gap_counts=np.array(counts),
    )


def test_gaps_count_as_often_as_they_were_seen() -> None:
    gaps, counts = [0.3, 0.1, 0.2], [1, 5, 4]
    summary = figures(
        columns(gaps, counts),
        num_failed=1,
        duration_s=3.0,
        tokens_by_second=np.array([1.0, 3.0]),
        percentiles=(12.5, 95.0, 100.0),
        goodput={},
    )
    each = np.repeat(gaps, counts) * 1e3
    assert summary["mean_itl_ms"] == pytest.approx(each.mean())
    assert summary["std_itl_ms"] == pytest.approx(each.std())
    for key, percentile in (("median", 50), ("p12.5", 12.5), ("p95", 95), ("p100", 100)):
        assert summary[f"{key}_itl_ms"] == pytest.approx(np.percentile(each, percentile))


def test_requests_meet_an_objective_up_to_its_limit_and_one_token_meets_every_tpot() -> None:
    done = columns([], [])
    assert done.meets("ttft", 500).tolist() == [False, True]
    assert done.meets("tpot", 999).tolist() == [False, True]
    assert done.meets_all({"ttft": 1000, "tpot": 1000}).tolist() == [True, True]


def test_failures_are_grouped_by_kind_with_the_first_message() -> None:
    records = [
        record(0.0, 5.0, failure=Failure("timeout", "later")),
        record(0.0, 2.0, failure=Failure("timeout", "first")),
        record(0.0, 1.0, failure=REFUSED),
        record(0.0, 1.0),
    ]
    assert failures(records) == {
        "http_429": {"count": 1, "first_message": "full"},
        "timeout": {"count": 2, "first_message": "first"},
    }


def tenants(*records: RequestRecord) -> dict[str, Any]:
    return by_tenant(records, 10.0, (50.0,), {})


def test_tenants_have_figures_of_their_own() -> None:
    figures = tenants(
        record(0.0, 1.0, 2.0, tenant="a"),
        record(0.0, 3.0, tenant="b"),
        record(0.0, 3.0, tenant="b", failure=REFUSED),
    )
    assert list(figures["tenants"]) == ["a", "b"]
    assert figures["tenants"]["a"]["median_ttft_ms"] == pytest.approx(1000)
    assert figures["tenants"]["a"]["output_throughput"] == pytest.approx(0.2)
    assert (figures["tenants"]["b"]["completed"], figures["tenants"]["b"]["failed"]) == (1, 1)


def test_fairness_counts_weighted_tokens_while_all_tenants_have_requests() -> None:
    """Tenant a ends at 4 s: b's answers after that were nobody's loss."""
    figures = tenants(
        record(0.0, 1.0, 2.0, 3.0, 4.0, tenant="a"),
        record(0.0, 1.0, tenant="b"),
        record(1.0, 8.0, 9.0, tenant="b"),
    )
    service_a, service_b = 10 + 2 * 4, 10 + 2 * 1
    assert figures["tenants"]["a"]["service_tokens"] == service_a
    assert figures["tenants"]["b"]["service_tokens"] == service_b
    expected = (service_a + service_b) ** 2 / (2 * (service_a**2 + service_b**2))
    assert figures["jain_index"] == pytest.approx(expected)
    assert figures["service_gap_tokens"] == 6


def test_fairness_is_none_when_tenants_never_had_requests_at_once() -> None:
    figures = tenants(record(0.0, 1.0, tenant="a"), record(2.0, 3.0, tenant="b"))
    assert figures["jain_index"] is None
