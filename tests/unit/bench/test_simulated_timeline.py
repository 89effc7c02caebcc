from __future__ import annotations

import json
import math
from collections import Counter
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
    assert sum(step["args"]["num_steps"] for step in steps) == run.result.num_steps
    for before, after in pairwise(steps):
        assert before["ts"] + before["dur"] <= after["ts"] + 1e-3


def test_counters_tell_running_waiting_and_memory(tmp_path: Path) -> None:
    counters = of_kind(events([a_run()], tmp_path / "t.json"), "C")
    assert {(c["name"], *c["args"]) for c in counters} == {
        ("requests", "running", "waiting"),
        ("KV blocks", "used_blocks"),
    }


def test_requests_are_spans_cut_by_the_first_token(tmp_path: Path) -> None:
    run = a_run(num_requests=3)
    spans = [
        e for e in of_kind(events([run], tmp_path / "t.json"), "b", "e") if e["id2"]["local"] == 1
    ]
    named = [(e["ph"], e["name"]) for e in spans]
    assert named == [
        ("b", "request 1"),
        ("b", "to first token"),
        ("e", "to first token"),
        ("b", "further tokens"),
        ("e", "further tokens"),
        ("e", "request 1"),
    ]
    assert spans[2]["ts"] == pytest.approx(run.result.first_token_s[1] * 1e6)
    assert spans[0]["args"]["tenant"] == "bob"


def test_rejected_request_has_no_first_token(tmp_path: Path) -> None:
    result = a_result((0.0, math.nan, 0.0, 10, 0), reasons=("rejected",))
    run = replace(a_run(), result=replace(result, steps=a_run().result.steps))
    spans = of_kind(events([run], tmp_path / "t.json"), "b", "e")
    assert [e["name"] for e in spans] == ["request 0", "request 0"]


def test_spans_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MAX_REQUESTS", 5)
    spans = of_kind(events([a_run()], tmp_path / "t.json"), "b")
    assert len({span["id2"]["local"] for span in spans}) == 5


def test_each_run_is_a_process_with_its_name(tmp_path: Path) -> None:
    found = events([a_run("fcfs"), a_run("</script>")], tmp_path / "t.json")
    names = [e["args"]["name"] for e in found if e["name"] == "process_name"]
    assert names == ["fcfs", "</script>"]
    assert Counter(e["pid"] for e in found).keys() == {1, 2}
