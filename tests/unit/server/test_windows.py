"""Sliding windows over cumulative counts, against the events themselves."""

from __future__ import annotations

import pytest

from evenflow.server.instruments import Counter, Histogram
from evenflow.server.windows import LatencyWindow, RateWindow


def test_latency_window_forgets_values_when_they_are_older_than_its_span() -> None:
    histogram = Histogram("t", "Time.", (1.0, 2.0, 4.0), subdivide=20)
    window = LatencyWindow(histogram, started_s=0.0, span_s=60.0)
    for second in range(200):
        histogram.observe(3.9 if second < 100 else 1.1)
        window.mark(float(second))
    during, after = window.percentiles(199.0), window.percentiles(260.0)
    assert during is not None
    assert during.p99 == pytest.approx(1.1, rel=0.05)
    assert after is None


def test_latency_window_includes_the_beginning_when_it_is_young() -> None:
    histogram = Histogram("t", "Time.", (1.0, 2.0))
    window = LatencyWindow(histogram, started_s=5.0)
    histogram.observe(1.5)
    window.mark(6.0)
    assert window.percentiles(7.0) is not None


def test_latency_window_keeps_few_marks_when_marked_often() -> None:
    window = LatencyWindow(Histogram("t", "Time.", (1.0,)), started_s=0.0, span_s=60.0)
    for tick in range(100_000):
        window.mark(tick * 0.25)
        window.percentiles(tick * 0.25)
    assert len(window._marks._marks) <= 62


def test_rate_window_is_the_mean_growth_when_a_counter_grows() -> None:
    counter = Counter("n", "Number.", ["tenant"])
    window = RateWindow(counter, started_s=0.0, span_s=5.0)
    for second in range(1, 21):
        counter.add(2 if second <= 10 else 6, "a")
        window.mark(float(second))
    assert window.per_second(20.0) == {("a",): 6.0}
    assert window.growth(20.0) == {("a",): 30.0}


def test_rate_window_is_empty_when_no_time_has_passed() -> None:
    counter = Counter("n", "Number.")
    counter.add(1)
    assert RateWindow(counter, started_s=3.0).per_second(3.0) == {}
