"""Counters, gauges and histograms against prometheus_client's reading of them."""

from __future__ import annotations

import random
import statistics

import pytest
from prometheus_client.parser import text_string_to_metric_families

from evenflow.server.instruments import Counter, Gauge, Histogram, Instrument, decades, percentiles


def samples(instrument: Instrument) -> dict[tuple[str, ...], float]:
    """Read an instrument's lines with prometheus_client's parser."""
    (family,) = text_string_to_metric_families("\n".join(instrument.lines()) + "\n")
    assert family.type == instrument.kind
    assert family.documentation == instrument.meaning
    return {
        (sample.name, *(f"{key}={value}" for key, value in sample.labels.items())): sample.value
        for sample in family.samples
    }


def test_decades_are_five_round_steps_each_when_listed() -> None:
    assert decades(-3, -1) == (
        *(0.001, 0.0016, 0.0025, 0.004, 0.0063),
        *(0.01, 0.016, 0.025, 0.04, 0.063),
        0.1,
    )


def test_counter_adds_per_label_when_counted() -> None:
    counter = Counter("hits_total", "Hits.", ["tenant"])
    counter.add(1, "a")
    counter.add(2, "b")
    counter.add(3, "a")
    assert samples(counter) == {
        ("hits_total", "tenant=a"): 4,
        ("hits_total", "tenant=b"): 2,
    }
    assert counter.total == 6


def test_counter_without_labels_is_zero_when_nothing_was_counted() -> None:
    assert samples(Counter("hits_total", "Hits.")) == {("hits_total",): 0}


def test_gauge_forgets_old_labels_when_replaced() -> None:
    gauge = Gauge("load", "Load.", ["tenant"])
    gauge.set(1.0, "old")
    gauge.replace({("new",): 2.0})
    assert samples(gauge) == {("load", "tenant=new"): 2.0}


def test_label_values_survive_when_they_hold_special_characters() -> None:
    value = 'a "b" \\ c\nd'
    gauge = Gauge("load", "Load.", ["tenant"])
    gauge.set(1.0, value)
    assert samples(gauge) == {("load", f"tenant={value}"): 1.0}


@pytest.mark.parametrize("subdivide", [1, 7])
def test_histogram_counts_up_to_each_bound_when_exported(subdivide: int) -> None:
    histogram = Histogram("t", "Time.", (1.0, 2.0, 4.0), ["tenant"], subdivide=subdivide)
    for value in (0.5, 1.0, 1.5, 2.0, 3.9, 100.0):
        histogram.observe(value, "a")
    assert samples(histogram) == {
        ("t_bucket", "tenant=a", "le=1.0"): 2,
        ("t_bucket", "tenant=a", "le=2.0"): 4,
        ("t_bucket", "tenant=a", "le=4.0"): 5,
        ("t_bucket", "tenant=a", "le=+Inf"): 6,
        ("t_count", "tenant=a"): 6,
        ("t_sum", "tenant=a"): pytest.approx(108.9),
    }


def test_percentiles_are_close_to_the_exact_ones_when_buckets_are_fine() -> None:
    rng = random.Random(1)
    values = [rng.lognormvariate(-3.0, 1.0) for _ in range(20_000)]
    histogram = Histogram("t", "Time.", decades(-3, 3), subdivide=10)
    for value in values:
        histogram.observe(value)
    found = percentiles(histogram.edges, histogram.counts)
    exact = statistics.quantiles(values, n=100)
    assert found is not None
    assert found.p50 == pytest.approx(exact[49], rel=0.05)
    assert found.p90 == pytest.approx(exact[89], rel=0.05)
    assert found.p99 == pytest.approx(exact[98], rel=0.05)


def test_percentiles_are_none_when_nothing_was_counted() -> None:
    assert percentiles([1.0, 2.0], [0, 0, 0]) is None


def test_percentiles_are_the_last_bound_when_values_lie_above_it() -> None:
    histogram = Histogram("t", "Time.", (1.0, 2.0))
    histogram.observe(50.0)
    found = percentiles(histogram.edges, histogram.counts)
    assert found is not None
    assert found.p50 == 2.0
