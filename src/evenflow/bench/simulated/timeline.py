"""Simulated runs as a timeline for chrome://tracing and ui.perfetto.dev.

Each run is a process: its steps are slices, its gauges counters, its requests asynchronous spans
that are cut by the first token. Times are in microseconds, as the format has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenflow.simulation.step_log import COLUMNS

if TYPE_CHECKING:
    from evenflow.bench.simulated.run import SimulatedRun

MAX_REQUESTS = 5_000
"""Spans of a run; viewers get slow with many more."""

_COUNTERS = {
    "requests": ("num_running", "num_waiting"),
    "KV blocks": ("num_used_blocks",),
}


def write_timeline(runs: Sequence[SimulatedRun], path: Path) -> None:
    """Write the timeline of some runs as JSON, one event at a time."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [')
        separator = "\n"
        for process, run in enumerate(runs, start=1):
            for event in _events(run):
                file.write(separator + json.dumps({"pid": process, **event}))
                separator = ",\n"
        file.write("\n]}\n")


def _events(run: SimulatedRun) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "args": {"name": run.label}}
    yield {"ph": "M", "name": "thread_name", "tid": 1, "args": {"name": "steps"}}
    yield from _steps(run)
    yield from _requests(run)


def _steps(run: SimulatedRun) -> Iterator[dict[str, Any]]:
    steps = run.result.steps
    if steps is None:
        return
    columns = [steps.column(name).tolist() for name in COLUMNS]
    for values in zip(*columns, strict=True):
        row = dict(zip(COLUMNS, values, strict=True))
        at = row.pop("start_s") * 1e6
        duration = row.pop("duration_s") * 1e6
        num_steps = row["num_steps"]
        name = "step" if num_steps == 1 else f"{num_steps:.0f} steps"
        yield {"ph": "X", "tid": 1, "name": name, "ts": at, "dur": duration, "args": row}
        for counter, gauges in _COUNTERS.items():
            shown = {gauge.removeprefix("num_"): row[gauge] for gauge in gauges}
            yield {"ph": "C", "name": counter, "ts": at, "args": shown}


def _requests(run: SimulatedRun) -> Iterator[dict[str, Any]]:
    """Yield spans of the first requests."""
    result = run.result
    for index in range(min(len(result.end_s), MAX_REQUESTS)):
        begin, first, end = (
            float(times[index]) * 1e6
            for times in (result.arrival_s, result.first_token_s, result.end_s)
        )
        span = {"cat": "request", "id2": {"local": index}, "tid": 2}
        arguments = {
            "tenant": result.tenant[index],
            "finish_reason": result.finish_reason[index],
            "num_prompt_tokens": int(result.num_prompt_tokens[index]),
            "num_cached_tokens": int(result.num_cached_tokens[index]),
            "num_output_tokens": int(result.num_output_tokens[index]),
            "num_preemptions": int(result.num_preemptions[index]),
        }
        name = f"request {index}"
        yield span | {"ph": "b", "name": name, "ts": begin, "args": arguments}
        if not np.isnan(first):
            yield span | {"ph": "b", "name": "to first token", "ts": begin}
            yield span | {"ph": "e", "name": "to first token", "ts": first}
            yield span | {"ph": "b", "name": "further tokens", "ts": first}
            yield span | {"ph": "e", "name": "further tokens", "ts": end}
        yield span | {"ph": "e", "name": name, "ts": end}
