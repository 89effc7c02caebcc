"""The search for the highest rate at which a simulated server meets its objectives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evenflow.bench.simulated.load import Load
from evenflow.bench.simulated.run import SimulatedRun
from evenflow.core.errors import ConfigError
from evenflow.simulation.capacity import Capacity, find_capacity

MIN_STEADY_RATIO = 10.0
"""Arrivals should last this many times as long as a request, or else the run is mostly its own
beginning and end."""

_SPARSE_RATIO = 0.01
"""With this many requests under way on average, each is alone."""


@dataclass(slots=True, frozen=True)
class Probe:
    """One rate that was tried.

    Attributes:
        rate: requests per second.
        attainment_ratio: requests that met all objectives / all requests.
        is_met: that was enough.
        ttft_ms: what the quantile of requests stayed within.
        tpot_ms: likewise; None if no answer has a second token.
        output_throughput: output tokens per second.
        steady_ratio: how many times as long as a request the arrivals lasted.
    """

    rate: float
    attainment_ratio: float
    is_met: bool
    ttft_ms: float
    tpot_ms: float | None
    output_throughput: float
    steady_ratio: float


@dataclass(slots=True, frozen=True)
class Answer:
    """The outcome of a search.

    Attributes:
        capacity: between which rates the limit lies.
        probes: all that were tried, in order.
    """

    capacity: Capacity
    probes: list[Probe]

    @property
    def best(self) -> Probe | None:
        """The probe at the highest rate that met the objectives."""
        met = [probe for probe in self.probes if probe.rate == self.capacity.rate]
        return met[0] if met else None

    def to_json(self) -> dict[str, Any]:
        """Return the answer for a file of results."""
        names = Probe.__slots__
        return {
            "rate": self.capacity.rate,
            "refused_rate": self.capacity.refused_rate,
            "is_steady": self.best is not None and self.best.steady_ratio >= MIN_STEADY_RATIO,
            "probes": [{name: getattr(probe, name) for name in names} for probe in self.probes],
        }


def search(
    run_at: Callable[[float], SimulatedRun],
    load: Load,
    *,
    quantile: float,
    tolerance: float,
    start_rate: float,
    on_probe: Callable[[Probe], None],
) -> Answer:
    """Find the highest rate at which `quantile` of all requests meet all objectives.

    Args:
        run_at: simulates the load at a rate. Its percentiles hold `quantile`.
        load: the requests.
        quantile: share of requests, failed ones included, that have to be good.
        tolerance: how exact the answer is to be, as a ratio of rates.
        start_rate: the first to try; infinite for that of the recording, or else 1.
        on_probe: called with every rate that has been tried.

    Raises:
        ConfigError: a setting of the search is out of range.
    """
    if not 0 < quantile <= 1:
        raise ConfigError("--slo-quantile must be above 0 and at most 1", why=f"it is {quantile}")
    if not tolerance > 0:
        raise ConfigError("--tolerance must be positive", why=f"it is {tolerance}")
    if math.isinf(start_rate):
        start_rate = load.recorded_rate or 1.0
    probes: dict[float, Probe] = {}

    def is_borne(rate: float) -> bool:
        if rate not in probes:
            probes[rate] = _probe(run_at(rate), rate, load, quantile)
            on_probe(probes[rate])
        return probes[rate].is_met

    is_borne(start_rate)
    # The rate at which all requests come while one is served, and one at which they are alone.
    burst_rate = start_rate * probes[start_rate].steady_ratio
    capacity = find_capacity(
        is_borne,
        start_rate,
        min_rate=min(start_rate, _SPARSE_RATIO * burst_rate / load.num_requests),
        max_rate=max(start_rate, burst_rate),
        tolerance=tolerance,
    )
    return Answer(capacity, list(probes.values()))


def _probe(run: SimulatedRun, rate: float, load: Load, quantile: float) -> Probe:
    summary = run.summary
    attainment_ratio = summary["slo_attainment_ratio"]
    at = f"p{quantile * 100:g}"
    return Probe(
        rate=rate,
        attainment_ratio=attainment_ratio,
        is_met=attainment_ratio >= quantile,
        ttft_ms=summary[f"{at}_ttft_ms"],
        tpot_ms=summary[f"{at}_tpot_ms"],
        output_throughput=summary["output_throughput"],
        steady_ratio=load.num_requests / rate / (summary["mean_e2el_ms"] / 1e3),
    )
