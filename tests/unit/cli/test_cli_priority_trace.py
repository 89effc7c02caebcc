"""`evenflow simulate --priority-trace`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evenflow.cli import main

TRACE = [
    "random",
    "--num-prompts",
    "40",
    "--random-input-len",
    "200",
    "--random-output-len",
    "60",
    "--random-range-ratio",
    "0.5",
]
SERVER = [
    "--policy",
    "priority",
    "--num-blocks-override",
    "64",
    "--max-num-seqs",
    "8",
    "--no-progress",
]


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["simulate", *TRACE, *SERVER, *arguments])


def ends_of(path: Path, *arguments: str) -> list[float]:
    result = simulate("--save-result", str(path), *arguments)
    assert result.exit_code == 0, result.stderr
    figures = json.loads(path.read_text())
    return [figures["p99_ttft_ms"], figures["mean_e2el_ms"]]


def test_simulate_goes_by_a_priority_trace(tmp_path: Path) -> None:
    file = tmp_path / "urgent.jsonl"
    file.write_text('{"step": 0, "priorities": {"39": -1}}\n')
    out = tmp_path / "result.json"
    sources = ["random:0.04", "markov:0.02", str(file)]
    runs = [ends_of(out), *(ends_of(out, "--priority-trace", source) for source in sources)]
    assert len({tuple(run) for run in runs}) == 4
    assert ends_of(out, "--priority-trace", "random:0.04") == runs[1]


@pytest.mark.parametrize("source", ["nothing.jsonl", "random:2"])
def test_simulate_refuses_what_is_no_priority_trace(source: str) -> None:
    result = simulate("--priority-trace", source)
    assert result.exit_code == 2
    assert "Error [invalid_request]" in result.stderr
