"""Several simulated runs side by side: one row each, with ratios to the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evenflow.bench.compare import Verdict, compare

if TYPE_CHECKING:
    from evenflow.bench.simulated.run import SimulatedRun

Summary = Mapping[str, Any]

_COLUMNS = (
    ("req/s", "request_throughput", 1.0),
    ("goodput", "request_goodput", 1.0),
    ("SLO %", "slo_attainment_ratio", 100.0),
    ("out tok/s", "output_throughput", 1.0),
    ("TTFT p50", "median_ttft_ms", 1.0),
    ("TTFT {}", "{}_ttft_ms", 1.0),
    ("TPOT p50", "median_tpot_ms", 1.0),
    ("TPOT {}", "{}_tpot_ms", 1.0),
    ("Jain", "jain_index", 1.0),
    ("preempt.", "num_preemptions", 1.0),
    ("KV %", "peak_kv_usage_ratio", 100.0),
    ("cost/1M", "cost_per_million_tokens", 1.0),
)


@dataclass(slots=True, frozen=True)
class Cell:
    """One figure of one run.

    Attributes:
        value: None if it was not measured.
        ratio: to that of the first run, None if there is none.
        verdict: whether that is better.
    """

    value: float | None
    ratio: float | None = None
    verdict: Verdict | None = None


@dataclass(slots=True, frozen=True)
class Overview:
    """The table.

    Attributes:
        titles: of its columns. Latencies are in milliseconds.
        rows: by run, its cells.
    """

    titles: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]


def overview(runs: Sequence[SimulatedRun], percentiles: Sequence[float]) -> Overview:
    """Lay out the main figures of runs; columns that no run has a figure for are left out."""
    summaries = [run.summary for run in runs]
    compared = {comparison.metric: comparison for comparison in compare(summaries)}
    high = f"p{max(percentiles):g}"
    columns = [
        (title.format(high), key.format(high), factor)
        for title, key, factor in _COLUMNS
        if any(summary.get(key.format(high)) is not None for summary in summaries)
    ]

    def cells(index: int, summary: Summary) -> Iterator[Cell]:
        for _, key, factor in columns:
            value = summary.get(key)
            shown = None if value is None else value * factor
            if index and key in compared:
                comparison = compared[key]
                ratio, verdict = comparison.ratios[index - 1], comparison.verdicts[index - 1]
                yield Cell(shown, ratio, verdict)
            else:
                yield Cell(shown)

    rows = {run.label: tuple(cells(index, run.summary)) for index, run in enumerate(runs)}
    return Overview([title for title, _, _ in columns], rows)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of points that no other one beats, in order of their first figures.

    A point is beaten by one with a first figure that is not lower and a second that is not higher,
    one of the two being better.

    Args:
        points: (the more the better, the less the better).
    """
    front: list[int] = []
    lowest = float("inf")
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1]))
    for index in order:
        if points[index][1] < lowest:
            front.append(index)
            lowest = points[index][1]
    return front[::-1]
