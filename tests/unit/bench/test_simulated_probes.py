from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from evenflow.bench.simulated.probes import MIN_STEADY_RATIO, Answer, Probe, search
from evenflow.bench.simulated.run import SimulatedRun
from evenflow.bench.simulated.variant import Variant
from evenflow.core.errors import ConfigError
from support.simulated_runs import a_result

RESULT = a_result((0.0, 1.0, 2.0, 10, 2))


class FixedLoad:
    """A load of so many requests."""

    name = "load"

    def __init__(self, num_requests: int = 1000, recorded_rate: float | None = None) -> None:
        self.num_requests = num_requests
        self.recorded_rate = recorded_rate

    def at_rate(self, rate: float) -> list[Any]:
        return []


def server(limit: float) -> Callable[[float], SimulatedRun]:
    """Return a server that serves 95 % well up to a rate, each in one second, and then 50 %."""

    def run_at(rate: float) -> SimulatedRun:
        summary = {
            "slo_attainment_ratio": 0.95 if rate <= limit else 0.5,
            "p90_ttft_ms": 100.0,
            "p90_tpot_ms": None,
            "output_throughput": 10 * rate,
            "mean_e2el_ms": 1000.0,
        }
        return SimulatedRun(label="", variant=Variant(), sources={}, summary=summary, result=RESULT)

    return run_at


def found(limit: float, load: FixedLoad, **settings: Any) -> tuple[Answer, list[Probe]]:
    probes: list[Probe] = []
    values = {"quantile": 0.9, "tolerance": 0.02, "start_rate": math.inf, **settings}
    return search(server(limit), load, on_probe=probes.append, **values), probes


def test_search_finds_the_highest_rate_that_is_served_well() -> None:
    answer, probes = found(7.3, FixedLoad())
    assert answer.capacity.rate is not None
    assert answer.capacity.rate <= 7.3 < (answer.capacity.refused_rate or 0)
    assert answer.capacity.rate == pytest.approx(7.3, rel=0.02)
    assert answer.probes == probes
    assert answer.best is not None
    assert answer.best.rate == answer.capacity.rate


@pytest.mark.parametrize(
    ("recorded", "given", "first"), [(None, math.inf, 1.0), (4.0, math.inf, 4.0), (4.0, 2.0, 2.0)]
)
def test_search_begins_at_the_rate_given_or_recorded(
    recorded: float | None, given: float, first: float
) -> None:
    _, probes = found(7.3, FixedLoad(recorded_rate=recorded), start_rate=given)
    assert probes[0].rate == first


def test_search_ends_when_all_requests_come_while_one_is_served() -> None:
    answer, probes = found(math.inf, FixedLoad(100))
    assert (answer.capacity.rate, answer.capacity.refused_rate) == (100.0, None)
    assert probes[-1].steady_ratio == pytest.approx(1.0)


def test_search_ends_when_even_lone_requests_are_not_served_well() -> None:
    answer, probes = found(0.0, FixedLoad())
    assert answer.capacity.rate is None
    assert answer.best is None
    assert probes[-1].rate == pytest.approx(0.01)


def test_answer_tells_whether_the_trace_was_long_enough() -> None:
    long, _ = found(7.3, FixedLoad(1000))
    short, _ = found(7.3, FixedLoad(50))
    assert long.to_json()["is_steady"]
    assert not short.to_json()["is_steady"]
    assert short.best is not None
    assert short.best.steady_ratio < MIN_STEADY_RATIO


@pytest.mark.parametrize("settings", [{"quantile": 0.0}, {"quantile": 1.1}, {"tolerance": 0.0}])
def test_search_is_refused_when_a_setting_is_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        found(1.0, FixedLoad(), **settings)
