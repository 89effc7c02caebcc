from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evenflow.bench.compare import compare, differences
from evenflow.bench.result import read_result
from evenflow.core.errors import InvalidRequestError


def result(**figures: Any) -> dict[str, Any]:
    return {"model_id": "m", "request_throughput": 1.0, **figures}


@pytest.mark.parametrize(
    ("metric", "value", "ratio", "verdict"),
    [
        ("output_throughput", 150.0, 1.5, "better"),
        ("output_throughput", 50.0, 0.5, "worse"),
        ("p99_ttft_ms", 150.0, 1.5, "worse"),
        ("p99.9_itl_ms", 50.0, 0.5, "better"),
        ("median_e2el_ms", 101.0, 1.01, "same"),
        ("failed", 50.0, 0.5, "better"),
    ],
)
def test_compare_judges_by_the_direction_of_the_metric(
    metric: str, value: float, ratio: float, verdict: str
) -> None:
    results = [result(**{metric: 100.0}), result(**{metric: value})]
    comparison = next(c for c in compare(results) if c.metric == metric)
    assert comparison.ratios == (pytest.approx(ratio),)
    assert comparison.verdicts == (verdict,)


def test_compare_has_no_ratio_to_nothing() -> None:
    comparisons = {c.metric: c for c in compare([result(failed=0), result(failed=3)])}
    assert comparisons["failed"].ratios == (None,)
    assert comparisons["failed"].verdicts == (None,)


def test_compare_calls_two_zeros_the_same() -> None:
    comparisons = {c.metric: c for c in compare([result(failed=0), result(failed=0)])}
    assert comparisons["failed"].verdicts == ("same",)


def test_compare_leaves_out_what_only_one_run_has_measured() -> None:
    metrics = [c.metric for c in compare([result(p50_ttft_ms=1.0), result(p99_ttft_ms=1.0)])]
    assert metrics == ["request_throughput"]


def test_compare_takes_several_runs() -> None:
    runs = [result(duration=4.0), result(duration=2.0), result(duration=None)]
    comparisons = {c.metric: c for c in compare(runs)}
    assert comparisons["duration"].ratios == (0.5, None)


def test_differences_name_settings_and_lengths() -> None:
    first = result(settings={"seed": 0}, num_prompts=10, total_input_tokens=1000)
    second = result(settings={"seed": 1}, num_prompts=20, total_input_tokens=1100)
    assert differences([first, second]) == [
        "num_prompts is 10 in A, 20 in B",
        "seed is 0 in A, 1 in B",
        "total_input_tokens is 1000 in A, 1100 in B",
    ]


def test_differences_forgive_lengths_that_nearly_agree() -> None:
    assert not differences([result(total_output_tokens=1000), result(total_output_tokens=1005)])


def test_differences_ignore_what_only_one_tool_records() -> None:
    assert not differences([result(settings={"seed": 0}), result()])


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"figure": 1}'])
def test_read_result_refuses_other_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(InvalidRequestError, match=r"result\.json"):
        read_result(path)
