"""`evenflow simulate` with the real simulator, over a second or two of an imagined server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from evenflow.bench.compare import compare
from evenflow.bench.result import read_result
from evenflow.cli import main

Simulate = Callable[..., Result]
HOSTILE = "[red]</td><script>\x1b[2J"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    rows = [
        {
            "timestamp": 50 * index,
            "input_length": 100 + index,
            "output_length": 4 + index % 5,
            "tenant": ("ann", HOSTILE)[index % 2],
        }
        for index in range(40)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def simulate(trace: str) -> Simulate:
    """Run `evenflow simulate` over the trace, or over something else."""

    def run(*arguments: str, of: str = trace, columns: str = "160") -> Result:
        return CliRunner().invoke(
            main, ["simulate", of, *arguments], env={"COLUMNS": columns}, catch_exceptions=False
        )

    return run


def saved(simulate: Simulate, path: Path, *arguments: str, **others: str) -> Any:
    result = simulate("--save-result", str(path), *arguments, **others)
    assert result.exit_code == 0, result.stderr
    return json.loads(path.read_text())


def test_simulate_prints_figures_to_stdout_and_sources_to_stderr(simulate: Simulate) -> None:
    result = simulate("--slo", "ttft:500,tpot:50")
    assert result.exit_code == 0
    for title in ("Successful requests", "Request goodput", "Time to First Token", "Preemptions"):
        assert title in result.stdout
    assert "ann" in result.stdout
    assert "Jain index" in result.stdout
    assert result.stderr.startswith("step times: ")


def test_simulate_prints_hostile_names_as_text(simulate: Simulate) -> None:
    result = simulate()
    assert "[red]</td><script>\N{REPLACEMENT CHARACTER}[2J" in result.stdout
    assert "\x1b" not in result.stdout


def test_simulate_saves_what_bench_can_compare(simulate: Simulate, tmp_path: Path) -> None:
    slow, fast = tmp_path / "slow.json", tmp_path / "fast.json"
    saved(simulate, slow, "--device", "a10")
    saved(simulate, fast, "--device", "h100")
    figures = {c.metric: c for c in compare([read_result(slow), read_result(fast)])}
    assert figures["median_tpot_ms"].verdicts == ("better",)


def test_simulate_compares_policies_side_by_side(simulate: Simulate, tmp_path: Path) -> None:
    runs = saved(simulate, tmp_path / "r.json", "--policy", "fcfs,priority")
    assert [run["label"] for run in runs] == ["fcfs", "priority"]
    assert [run["settings"]["policy"] for run in runs] == ["fcfs", "priority"]
    assert all(run["completed"] == 40 for run in runs)


def test_simulate_sweeps_all_combinations(simulate: Simulate, tmp_path: Path) -> None:
    runs = saved(
        simulate, tmp_path / "r.json", "--sweep", "rate=10,40 max-num-seqs=1,64", "--sweep", "tp=2"
    )
    assert [run["label"] for run in runs] == [
        "rate=10 max-num-seqs=1",
        "rate=10 max-num-seqs=64",
        "rate=40 max-num-seqs=1",
        "rate=40 max-num-seqs=64",
    ]
    assert [run["settings"]["tp"] for run in runs] == [2] * 4
    assert runs[2]["median_ttft_ms"] > 2 * runs[3]["median_ttft_ms"]


def test_simulate_shows_ratios_to_the_first_of_several(simulate: Simulate) -> None:
    result = simulate("--sweep", "max-num-seqs=64,1")
    assert "max-num-seqs=64" in result.stdout
    assert "x1.00" in result.stdout


def test_simulate_leaves_out_columns_when_the_terminal_is_narrow(
    simulate: Simulate,
) -> None:
    wide = simulate("--policy", "fcfs,priority")
    narrow = simulate("--policy", "fcfs,priority", columns="60")
    assert "cost/1M" in wide.stdout
    assert "cost/1M" not in narrow.stdout
    assert "cost/1M: --report and --save-result have them" in narrow.stderr
    assert max(map(len, narrow.stdout.splitlines())) <= 60


def test_simulate_tells_where_the_time_of_a_request_went(simulate: Simulate) -> None:
    result = simulate("--explain", "3", "--max-num-seqs", "1")
    assert "tenant" in result.stdout
    assert "decode" in result.stdout
    assert "queued" in result.stdout


def test_simulate_saves_its_result_when_there_is_nothing_to_explain(
    simulate: Simulate, tmp_path: Path
) -> None:
    result = simulate("--explain", "40", "--save-result", str(tmp_path / "r.json"))
    assert result.exit_code == 2
    assert "there is no request '40'" in result.stderr
    assert json.loads((tmp_path / "r.json").read_text())["completed"] == 40


def test_simulate_writes_report_and_timeline(simulate: Simulate, tmp_path: Path) -> None:
    report, timeline = tmp_path / "new" / "report.html", tmp_path / "timeline.json"
    result = simulate("--report", str(report), "--timeline", str(timeline))
    assert result.exit_code == 0
    assert "<script" not in report.read_text()
    assert json.loads(timeline.read_text())["traceEvents"]
    assert f"wrote {report}" in result.stderr


def test_simulate_stops_at_the_limit(simulate: Simulate, tmp_path: Path) -> None:
    assert saved(simulate, tmp_path / "r.json", "--limit", "7")["completed"] == 7


def test_simulate_plays_a_generator(simulate: Simulate, tmp_path: Path) -> None:
    arguments = ("--num-prompts", "30", "--request-rate", "20", "--tenants", "a:2,b:1")
    figures = saved(simulate, tmp_path / "r.json", *arguments, "--num-turns", "3", of="random")
    assert figures["completed"] == 30
    assert figures["prefix_cache_hit_ratio"] > 0.5
    assert {name: t["completed"] for name, t in figures["tenants"].items()} == {"a": 21, "b": 9}


def test_simulate_is_the_same_again(simulate: Simulate, tmp_path: Path) -> None:
    arguments = ("--request-rate", "20", "--num-prompts", "30", "--random-range-ratio", "0.5")
    once, again = (saved(simulate, tmp_path / "r.json", *arguments, of="random") for _ in range(2))
    for figures in (once, again):
        del figures["date"], figures["simulation_wall_s"]
    assert once == again


def test_simulate_charges_the_price_that_is_given(simulate: Simulate, tmp_path: Path) -> None:
    figures = saved(simulate, tmp_path / "r.json", "--price-per-hour", "3.6", "--tp", "2")
    assert figures["cost"] == pytest.approx(2 * 3.6 / 3600 * figures["duration"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--slo", "speed:5"), "'speed' is none of ttft, tpot, e2el"),
        (("--sweep", "colour=red"), "is not NAME=VALUE"),
        (("--sweep", "tp=two"), "invalid literal"),
        (("--policy", ","), "it names nothing"),
        (("--policy", "lottery"), "lottery"),
        (("--model", "gpt-9"), "there is no model 'gpt-9'"),
        (("--device", "abacus"), "there is no device 'abacus'"),
        (("--costs", "guess"), "there are no costs 'guess'"),
        (("--limit", "0"), "--num-prompts must be positive"),
        (("--metric-percentiles", "101"), "--metric-percentiles must be between 0 and 100"),
    ],
)
def test_simulate_says_what_is_wrong(
    simulate: Simulate, arguments: tuple[str, ...], message: str
) -> None:
    result = simulate(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_simulate_says_that_there_is_no_such_trace(simulate: Simulate) -> None:
    result = simulate(of="nowhere.jsonl")
    assert result.exit_code == 2
    assert "there is no trace 'nowhere.jsonl'" in result.stderr


def test_simulate_fails_when_nothing_can_be_completed(simulate: Simulate) -> None:
    result = simulate("--max-model-len", "50")
    assert result.exit_code == 1
    assert "nothing_completed" in result.stderr
    assert "40 ended with rejected" in result.stderr
