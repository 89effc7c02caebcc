from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from evenflow.bench.simulated import timeline
from evenflow.bench.simulated.run import SimulatedRun
from evenflow.bench.simulated.timeline import write_timeline
from support.simulated_runs import a_result, a_run


def events(runs: list[SimulatedRun], path: Path) -> list[dict[str, Any]]:
    write_timeline(runs, path)
    content = json.loads(path.read_text())
    assert content["displayTimeUnit"] == "ms"
    return content["traceEvents"]


def of_kind(found: list[dict[str, Any]], *phases: str) -> list[dict[str, Any]]:
    return [event for event in found if event["ph"] in phases]


def test_steps_are_slices_that_follow_each_other(tmp_path: Path) -> None:
    run = a_run()
    steps = of_kind(events([run], tmp_path / "t.json"), "X")
    steps = [step for step in steps if "num_steps" in step.get("args", ())]
    assert sum(step["args"]["num_steps"] for step in steps) == run.result.num_steps
    for before, after in pairwise(steps):
        assert before["ts"] + before["dur"] <= after["ts"]


def test_counters_tell_running_waiting_and_memory(tmp_path: Path) -> None:
    counters = of_kind(events([a_run()], tmp_path / "t.json"), "C")
    assert {(c["name"], *c["args"]) for c in counters} == {
        ("requests", "running", "waiting"),
        ("KV blocks", "used"),
    }


def requests_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [slice_ for slice_ in of_kind(found, "X") if slice_["pid"] % 2 == 0]


def test_requests_are_slices_cut_by_the_first_token(tmp_path: Path) -> None:
    run = a_run(num_requests=3)
    slices = requests_of(events([run], tmp_path / "t.json"))[3:6]
    assert [slice_["name"] for slice_ in slices] == [
        "request 1",
        "to first token",
        "further tokens",
    ]
    whole, first, rest = ((s["ts"], s["ts"] + s["dur"], s["tid"]) for s in slices)
    at_us = round(run.result.first_token_s[1] * 1e6)
    assert (first, rest) == ((whole[0], at_us, whole[2]), (at_us, whole[1], whole[2]))
    assert slices[0]["args"]["tenant"] == "bob"


def test_rejected_request_has_no_first_token(tmp_path: Path) -> None:
    result = a_result((0.0, math.nan, 0.0, 10, 0), reasons=("rejected",))
    run = replace(a_run(), result=replace(result, steps=a_run().result.steps))
    slices = requests_of(events([run], tmp_path / "t.json"))
    assert [slice_["name"] for slice_ in slices] == ["request 0"]


def test_requests_share_rows_without_overlap_and_in_no_more_rows_than_needed(
    tmp_path: Path,
) -> None:
    result = a_result(
        (0.0, 1.0, 2.0, 10, 5),
        (1.0, 2.0, 9.0, 10, 5),
        (2.0, 3.0, 4.0, 10, 5),
        (4.5, 5.0, 6.0, 9, 5),
    )
    run = replace(a_run(), result=result)
    found = events([run], tmp_path / "t.json")
    rows = [s["tid"] for s in requests_of(found) if s["name"].startswith("request")]
    assert rows == [2, 3, 2, 2]
    assert [e["tid"] for e in found if e["name"] == "thread_name"] == [2, 3]


def test_requests_that_are_shown_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "MAX_REQUESTS", 5)
    slices = requests_of(events([a_run()], tmp_path / "t.json"))
    assert [s["name"] for s in slices if "args" in s] == [f"request {i}" for i in range(5)]


def test_each_run_is_two_processes_with_its_name(tmp_path: Path) -> None:
    found = events([a_run("fcfs"), a_run("</script>")], tmp_path / "t.json")
    names = [e["args"]["name"] for e in found if e["name"] == "process_name"]
    assert names == ["fcfs", "fcfs: requests", "</script>", "</script>: requests"]
    assert {e["pid"] for e in found} == {1, 2, 3, 4}
