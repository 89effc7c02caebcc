"""What a report draws: latencies, the server and its tenants over time, and the Pareto front."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from evenflow.bench.metrics import Completed
from evenflow.bench.simulated.charts import NUM_COLORS, Chart, Series
from evenflow.bench.simulated.curves import (
    NUM_POINTS,
    delivered,
    distribution,
    per_second,
    thinned,
)
from evenflow.bench.simulated.overview import pareto_front
from evenflow.bench.simulated.run import Measures, SimulatedRun
from evenflow.bench.simulated.summary import (
    by_owner,
    completed,
    select,
    service,
    tenants_of_completed,
)

Floats = npt.NDArray[np.float64]

_MAX_SERIES = NUM_COLORS
_LATENCIES = (
    ("Time to first token", "ttft"),
    ("Time per output token", "tpot"),
    ("End-to-end latency", "e2el"),
)


def charts_of(runs: Sequence[SimulatedRun], measures: Measures) -> Iterator[Chart]:
    """Yield all charts; those over time and requests show the first `_MAX_SERIES` runs."""
    if len(runs) > 1:
        yield from _trade_offs(runs, measures)
    shown = [(run, completed(run.result)) for run in runs[:_MAX_SERIES]]
    for title, metric in _LATENCIES:
        yield _distribution(title, metric, shown)
    yield Chart(
        "Throughput",
        "time (s)",
        "output tokens per second",
        [_throughput(index, run, done) for index, (run, done) in enumerate(shown)],
    )
    for title, column, unit in (
        ("Running", "num_running", "requests"),
        ("Waiting", "num_waiting", "requests"),
        ("KV memory in use", "num_used_blocks", "% of blocks"),
    ):
        yield _gauge(title, column, unit, [run for run, _ in shown])
    for run, done in shown:
        if "tenants" in run.summary:
            yield _services(run, done)


def _trade_offs(runs: Sequence[SimulatedRun], measures: Measures) -> Iterator[Chart]:
    """Yield throughput, and goodput, against the tail of the time to first token."""
    high = f"p{max(measures.percentiles):g}"
    for title, key, unit in (
        ("Throughput against tail latency", "output_throughput", "output tokens per second"),
        ("Goodput against tail latency", "request_goodput", "good requests per second"),
    ):
        points = [(run.summary[key], run.summary[f"{high}_ttft_ms"]) for run in runs]
        if any(value is None for point in points for value in point):
            continue
        front = [points[index] for index in pareto_front(points)]
        series = [*_by_policy(runs, points), _line("Pareto front", front)]
        y_label = f"{high} TTFT, ms; the line joins runs that no other beats"
        yield Chart(title, unit, y_label, series, is_log_y=True)


def _by_policy(
    runs: Sequence[SimulatedRun], points: Sequence[tuple[float, float]]
) -> Iterator[Series]:
    """Yield the points of each policy."""
    ordered = sorted(range(len(runs)), key=lambda index: runs[index].variant.policy)
    groups = groupby(ordered, key=lambda index: runs[index].variant.policy)
    for color, (policy, members) in enumerate(groups):
        indices = list(members)
        x, y = zip(*(points[index] for index in indices), strict=True)
        labels = [f"{runs[i].label}: {points[i][0]:.4g}, {points[i][1]:.4g} ms" for i in indices]
        yield Series(policy, x, y, labels, color)


def _line(name: str, points: Sequence[tuple[float, float]]) -> Series:
    x, y = zip(*points, strict=True)
    return Series(name, x, y, color=-1)


def _distribution(
    title: str, metric: str, shown: Iterable[tuple[SimulatedRun, Completed]]
) -> Chart:
    series = []
    for index, (run, done) in enumerate(shown):
        seconds = {"ttft": done.ttft_s, "tpot": done.tpot_s, "e2el": done.e2el_s}[metric]
        known = seconds[~np.isnan(seconds)]
        if len(known):
            values, shares = distribution(known * 1e3)
            series.append(Series(run.label, values, shares, color=index))
    return Chart(title, "ms", "share of requests within", series, is_log_x=True)


def _throughput(index: int, run: SimulatedRun, done: Completed) -> Series:
    times_s = _points_in_time(run)
    at_first, afterwards = np.ones(len(done.end_s)), done.num_output_tokens - 1.0
    totals = delivered(done.first_s, done.end_s, at_first, afterwards, times_s)
    return Series(run.label, times_s[1:], per_second(totals, times_s), color=index)


def _gauge(title: str, column: str, unit: str, runs: Sequence[SimulatedRun]) -> Chart:
    """Return what the log of steps says about one column; blocks as a share of all."""
    series = []
    for index, run in enumerate(runs):
        steps = run.result.steps
        if steps is not None:
            times_s, values = thinned(steps.column("start_s"), steps.column(column))
            scale = 100 / run.result.num_kv_blocks if column == "num_used_blocks" else 1.0
            series.append(Series(run.label, times_s, values * scale, color=index))
    return Chart(title, "time (s)", unit, series)


def _services(run: SimulatedRun, done: Completed) -> Chart:
    """Return the service of those tenants that were served the most."""
    tenants: dict[str, Any] = run.summary["tenants"]
    most = heapq.nlargest(_MAX_SERIES, tenants, key=lambda t: tenants[t]["total_output_tokens"])
    places = by_owner(tenants_of_completed(run.result))
    times_s = _points_in_time(run)
    series = [
        Series(tenant, times_s, service(select(done, places[tenant]), times_s), color=index)
        for index, tenant in enumerate(most)
        if tenant in places
    ]
    return Chart(f"Service, {run.label}", "time (s)", "weighted tokens by tenant", series)


def _points_in_time(run: SimulatedRun) -> Floats:
    return np.linspace(run.result.arrival_s[0], run.result.duration_s, NUM_POINTS)
