"""Simulated runs as a timeline for chrome://tracing and ui.perfetto.dev.

    fcfs              a run
      steps           a slice per step
      requests, KV    counters
    fcfs: requests
      rows            a slice per request, cut by its first token; others follow it in its row

Times are whole microseconds, so that slices of a row never overlap by a rounding error: a viewer
leaves out those that do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenflow.simulation.step_log import COLUMNS

if TYPE_CHECKING:
    from evenflow.bench.simulated.run import SimulatedRun

MAX_REQUESTS = 5_000
"""Requests of a run that are shown; viewers get slow with many more."""

_COUNTERS = {
    "requests": {"running": "num_running", "waiting": "num_waiting"},
    "KV blocks": {"used": "num_used_blocks"},
}


def write_timeline(runs: Sequence[SimulatedRun], path: Path) -> None:
    """Write the timeline of some runs as JSON, one event at a time."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [')
        separator = "\n"
        for number, run in enumerate(runs):
            for event in _events(run, 2 * number + 1):
                file.write(separator + json.dumps(event))
                separator = ",\n"
        file.write("\n]}\n")


def _events(run: SimulatedRun, process: int) -> Iterator[dict[str, Any]]:
    """Yield events of two processes, the first of which has this number."""
    yield _named(process, process, "process_name", run.label)
    yield from _steps(run, process)
    if len(run.result.end_s):
        yield _named(process + 1, process + 1, "process_name", f"{run.label}: requests")
        yield from _requests(run, process + 1)


def _steps(run: SimulatedRun, process: int) -> Iterator[dict[str, Any]]:
    steps = run.result.steps
    if steps is None:
        return
    yield _named(process, process, "thread_name", "steps")
    columns = [steps.column(name).tolist() for name in COLUMNS]
    for values in zip(*columns, strict=True):
        row = dict(zip(COLUMNS, values, strict=True))
        begin_s = row.pop("start_s")
        end_s = begin_s + row.pop("duration_s")
        num_steps = row["num_steps"]
        name = "step" if num_steps == 1 else f"{num_steps:.0f} steps"
        yield _slice(process, process, name, begin_s, end_s) | {"args": row}
        for counter, gauges in _COUNTERS.items():
            shown = {name: row[gauge] for name, gauge in gauges.items()}
            at = _microseconds(begin_s)
            yield {"ph": "C", "pid": process, "name": counter, "ts": at, "args": shown}


def _requests(run: SimulatedRun, process: int) -> Iterator[dict[str, Any]]:
    """Yield slices of the first requests, each in the first row that is free when it arrives."""
    result = run.result
    free_rows: list[int] = []
    taken_until: list[tuple[int, int]] = []
    for index in range(min(len(result.end_s), MAX_REQUESTS)):
        begin_s, first_s, end_s = (
            float(times[index]) for times in (result.arrival_s, result.first_token_s, result.end_s)
        )
        while taken_until and taken_until[0][0] <= _microseconds(begin_s):
            heappush(free_rows, heappop(taken_until)[1])
        if not free_rows:
            # The row with the number of its process counts as the main one and is shown first.
            free_rows.append(process + len(taken_until))
            yield _named(process, free_rows[0], "thread_name", "row")
        row = heappop(free_rows)
        heappush(taken_until, (_microseconds(end_s), row))
        arguments = {
            "tenant": result.tenant[index],
            "finish_reason": result.finish_reason[index],
            "num_prompt_tokens": int(result.num_prompt_tokens[index]),
            "num_cached_tokens": int(result.num_cached_tokens[index]),
            "num_output_tokens": int(result.num_output_tokens[index]),
            "num_preemptions": int(result.num_preemptions[index]),
        }
        yield _slice(process, row, f"request {index}", begin_s, end_s) | {"args": arguments}
        if not math.isnan(first_s):
            yield _slice(process, row, "to first token", begin_s, first_s)
            yield _slice(process, row, "further tokens", first_s, end_s)


def _named(process: int, row: int, what: str, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": row, "name": what, "args": {"name": name}}


def _slice(process: int, row: int, name: str, begin_s: float, end_s: float) -> dict[str, Any]:
    begin, end = _microseconds(begin_s), _microseconds(end_s)
    return {"ph": "X", "pid": process, "tid": row, "name": name, "ts": begin, "dur": end - begin}


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
