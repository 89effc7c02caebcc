from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenflow.simulation.capacity import Capacity, find_capacity


class Limit:
    """Bears rates up to a limit, and remembers what it was asked."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.asked: list[float] = []

    def __call__(self, rate: float) -> bool:
        self.asked.append(rate)
        return rate <= self._limit


def search(limit: Limit, start: float = 1.0, tolerance: float = 0.05) -> Capacity:
    return find_capacity(limit, start, min_rate=0.01, max_rate=100.0, tolerance=tolerance)


@given(
    limit=st.floats(0.011, 99.0),
    start=st.floats(0.01, 100.0),
    tolerance=st.floats(0.001, 1.0),
)
def test_search_encloses_the_limit_within_the_tolerance(
    limit: float, start: float, tolerance: float
) -> None:
    asked = Limit(limit)
    found = search(asked, start, tolerance)
    assert found.rate is not None
    assert found.refused_rate is not None
    assert found.rate <= limit < found.refused_rate <= found.rate * (1 + tolerance)
    assert len(asked.asked) == len(set(asked.asked))
    num_halvings = math.log2(math.log(2) / math.log1p(tolerance))
    assert len(asked.asked) <= 15 + max(0, num_halvings) + 1


def test_search_finds_no_rate_when_none_is_borne() -> None:
    limit = Limit(0.0)
    assert search(limit) == Capacity(None, 0.01)
    assert min(limit.asked) == 0.01


def test_search_stops_at_the_highest_rate_when_all_are_borne() -> None:
    limit = Limit(math.inf)
    assert search(limit, start=30.0) == Capacity(100.0, None)
    assert limit.asked == [30.0, 60.0, 100.0]


@pytest.mark.parametrize(("start", "limit"), [(100.0, math.inf), (0.01, 0.0)])
def test_search_asks_once_when_it_starts_at_the_bound(start: float, limit: float) -> None:
    asked = Limit(limit)
    search(asked, start=start)
    assert asked.asked == [start]


def test_search_ends_next_to_a_change_when_the_function_is_not_monotone() -> None:
    answers: dict[float, bool] = {}

    def is_borne(rate: float) -> bool:
        answers[rate] = rate < 3.0 or 5.0 < rate < 7.0
        return answers[rate]

    found = find_capacity(is_borne, 1.0, min_rate=0.1, max_rate=64.0, tolerance=0.01)
    assert found.rate is not None
    assert found.refused_rate is not None
    assert answers[found.rate]
    assert not answers[found.refused_rate]
