from __future__ import annotations

import math

import numpy as np
import pytest

from evenflow.workloads.arrivals import gamma_arrivals, ramp_arrivals, scaled_to_rate

NUM = 20_000


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_arrivals_have_gaps_that_vary_as_the_burstiness_says(burstiness: float) -> None:
    gaps = np.diff(gamma_arrivals(NUM, 10.0, burstiness, rng()))
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.03)


def test_gamma_arrivals_are_memoryless_when_the_burstiness_is_one() -> None:
    """In a Poisson process, a share of exp(-1) of the gaps is longer than the mean."""
    gaps = np.diff(gamma_arrivals(NUM, 10.0, 1.0, rng()))
    assert (gaps > gaps.mean()).mean() == pytest.approx(math.exp(-1), abs=0.01)


def test_gamma_arrivals_end_exactly_when_the_rate_says() -> None:
    assert gamma_arrivals(500, 8.0, 0.5, rng())[-1] == pytest.approx(500 / 8.0)


def test_gamma_arrivals_are_evenly_spaced_when_the_burstiness_is_infinite() -> None:
    assert np.diff(gamma_arrivals(50, 4.0, math.inf, rng())) == pytest.approx(0.25)


def test_gamma_arrivals_all_come_at_once_when_the_rate_is_infinite() -> None:
    assert gamma_arrivals(5, math.inf, 1.0, rng()).tolist() == [0.0] * 5


def test_gamma_arrivals_depend_on_nothing_but_the_generator() -> None:
    first, second = (gamma_arrivals(50, 4.0, 0.7, rng()) for _ in range(2))
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize(("strategy", "middle_rate"), [("linear", 50.5), ("exponential", 10.0)])
def test_ramp_arrivals_go_from_rate_to_rate(strategy: str, middle_rate: float) -> None:
    times = ramp_arrivals(1001, strategy, 1.0, 100.0, math.inf, rng())
    rates = 1 / np.diff(times, prepend=0.0)
    assert [rates[0], rates[500], rates[1000]] == pytest.approx([1.0, middle_rate, 100.0])


def test_scaled_arrivals_keep_their_shape_and_get_the_rate() -> None:
    times = scaled_to_rate(np.array([5.0, 6.0, 6.0, 9.0]), 2.0)
    assert times == pytest.approx([0.0, 0.5, 0.5, 2.0])


def test_scaled_arrivals_keep_the_recorded_rate_when_none_is_asked_for() -> None:
    assert scaled_to_rate(np.array([5.0, 6.0, 9.0]), math.inf).tolist() == [0.0, 1.0, 4.0]
