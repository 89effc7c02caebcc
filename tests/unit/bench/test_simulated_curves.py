from __future__ import annotations

import numpy as np
import pytest

from evenflow.bench.simulated.curves import (
    NUM_POINTS,
    delivered,
    distribution,
    per_second,
    thinned,
)


def slowly_delivered(first_s, end_s, at_first, afterwards, time_s: float) -> float:
    """The same sum, one request at a time."""
    total = 0.0
    for first, end, lump, rest in zip(first_s, end_s, at_first, afterwards, strict=True):
        if time_s >= first:
            total += lump
            total += rest if time_s >= end else rest * (time_s - first) / (end - first)
    return total


def test_delivered_equals_the_sum_over_requests() -> None:
    rng = np.random.default_rng(0)
    first_s = rng.uniform(0, 10, 200)
    end_s = first_s + rng.choice([0.0, 0.5, 3.0, 20.0], 200)
    at_first, afterwards = rng.uniform(0, 5, 200), rng.uniform(0, 50, 200)
    times_s = np.concatenate([[-1.0, 0.0, 100.0], rng.uniform(0, 30, 50), first_s[:5], end_s[:5]])
    got = delivered(first_s, end_s, at_first, afterwards, times_s)
    expected = [slowly_delivered(first_s, end_s, at_first, afterwards, t) for t in times_s]
    assert got == pytest.approx(expected)


def test_delivered_is_nothing_without_requests() -> None:
    none = np.zeros(0)
    assert delivered(none, none, none, none, np.array([0.0, 1.0])).tolist() == [0.0, 0.0]


def test_rate_is_the_slope_of_a_total() -> None:
    times_s = np.array([0.0, 2.0, 3.0])
    assert per_second(np.array([0.0, 4.0, 10.0]), times_s).tolist() == [2.0, 6.0]


def test_distribution_goes_from_the_smallest_to_the_largest_value() -> None:
    values, shares = distribution(np.random.default_rng(0).permutation(10_000).astype(float))
    assert (values[0], values[-1], shares[0], shares[-1]) == (0.0, 9999.0, 0.0, 1.0)
    assert len(values) == NUM_POINTS


def test_thinned_keeps_the_peaks() -> None:
    values = np.zeros(100_000)
    values[[777, 50_001]] = 5.0, 9.0
    times_s, thin = thinned(np.arange(100_000.0), values)
    assert len(times_s) == len(thin) == NUM_POINTS
    assert sorted(thin)[-2:] == [5.0, 9.0]


def test_thinned_leaves_a_short_series_alone() -> None:
    times_s, values = thinned(np.array([0.0, 1.0]), [3, 4])
    assert (times_s.tolist(), values.tolist()) == ([0.0, 1.0], [3.0, 4.0])
