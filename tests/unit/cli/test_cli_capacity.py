from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evenflow.cli import main

Capacity = Callable[..., Result]
FAST = ("--slo", "ttft:500,tpot:50", "--tolerance", "0.2", "--num-prompts", "100")
SHORT = ("--random-input-len", "200", "--random-output-len", "8")


def capacity(*arguments: str) -> Result:
    return CliRunner().invoke(
        main, ["capacity", "random", *SHORT, *arguments], catch_exceptions=False
    )


def test_capacity_prints_probes_and_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    result = capacity(*FAST, "--request-rate", "20", "--save-result", str(path))
    assert result.exit_code == 0, result.stderr
    answer = json.loads(path.read_text())["fcfs"]
    assert answer["refused_rate"] <= answer["rate"] * 1.2
    probes = {probe["rate"]: probe["is_met"] for probe in answer["probes"]}
    assert probes[answer["rate"]]
    assert not probes[answer["refused_rate"]]
    head, *lines = result.stdout.splitlines()
    assert head == "fcfs: llama-3-8b on a100, 1 device"
    assert len(lines) == len(probes) + 1
    assert f"{answer['rate']:.4g} requests/s" in lines[-1]


def test_capacity_says_when_the_trace_is_too_short() -> None:
    result = capacity(*FAST, "--request-rate", "20")
    assert "bounded by the trace's length" in result.stdout


def test_capacity_says_when_no_rate_is_met() -> None:
    result = capacity("--slo", "ttft:0.001", "--num-prompts", "20")
    assert result.exit_code == 0
    assert "no rate" in result.stdout.splitlines()[-1]


def test_capacity_says_when_every_rate_is_met() -> None:
    result = capacity("--slo", "ttft:1e9", "--num-prompts", "20")
    assert "too few to find the limit" in result.stdout.splitlines()[-1]


def test_capacity_answers_for_each_policy_and_per_device() -> None:
    result = capacity(*FAST, "--policy", "fcfs,priority", "--tp", "2", "--request-rate", "40")
    assert result.stdout.count("on a100, 2 devices") == 2
    assert result.stdout.count("per device") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "capacity needs objectives"),
        ((*FAST, "--slo-quantile", "2"), "--slo-quantile must be"),
        ((*FAST, "--tolerance", "0"), "--tolerance must be positive"),
    ],
)
def test_capacity_says_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    result = capacity(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
