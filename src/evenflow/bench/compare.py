"""Compares results of runs: ratios of figures, and whether the runs may be compared at all.

Works on the result files of `evenflow bench serve` and of `vllm bench serve`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["better", "worse", "same"]

SAME_WITHIN_RATIO = 0.02
"""Ratios nearer to 1 than this are called the same; repeat runs to tell smaller differences."""

_HIGHER_IS_BETTER = (
    *("completed", "request_throughput", "request_goodput", "output_throughput"),
    *("total_token_throughput", "max_output_tokens_per_s", "jain_index", "slo_attainment_ratio"),
)
_LOWER_IS_BETTER = ("failed", "duration", "num_preemptions", "cost_per_million_tokens")
_LATENCY = re.compile(r"(mean|median|p[\d.]+)_(ttft|tpot|itl|e2el)_ms")

_SETTINGS = (
    *("model_id", "num_prompts", "request_rate", "burstiness", "max_concurrency"),
    *("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps", "token_counts"),
)
_LENGTHS = ("total_input_tokens", "total_output_tokens")
_SAME_LENGTHS_WITHIN_RATIO = 0.01


@dataclass(slots=True, frozen=True)
class Comparison:
    """One figure of several runs.

    Attributes:
        metric: its key in the results.
        values: of each run, the baseline first; None where it was not measured.
        ratios: of the runs after the first, value / baseline; None where there is none.
        verdicts: likewise; None where there is no ratio.
    """

    metric: str
    values: tuple[float | None, ...]
    ratios: tuple[float | None, ...]
    verdicts: tuple[Verdict | None, ...]


def compare(results: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Compare every figure that has a good direction and that a run beside the first has too.

    Args:
        results: contents of result files, the baseline first.
    """
    metrics = [*_HIGHER_IS_BETTER, *_LOWER_IS_BETTER]
    metrics += [key for key in results[0] if _LATENCY.fullmatch(key)]
    comparisons = []
    for metric in metrics:
        baseline, *others = (result.get(metric) for result in results)
        if baseline is None or all(value is None for value in others):
            continue
        ratios = tuple(_ratio(baseline, value) for value in others)
        verdicts = tuple(_verdict(metric, ratio) for ratio in ratios)
        comparisons.append(Comparison(metric, (baseline, *others), ratios, verdicts))
    return comparisons


def differences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return, as sentences, in which settings the runs differ from the first."""
    baseline = _settings(results[0])
    return [
        f"{name} is {baseline[name]} in A, {value} in {label(index)}"
        for index, result in enumerate(results[1:], start=1)
        for name, value in sorted(_settings(result).items())
        # What one tool records and another does not is no difference.
        if name in baseline and not _is_same(name, baseline[name], value)
    ]


def label(index: int) -> str:
    """Return the letter that stands for a run."""
    return chr(ord("A") + index)


def _settings(result: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: result[name] for name in (*_SETTINGS, *_LENGTHS) if name in result}
    return {**result.get("settings", {}), **named}


def _is_same(name: str, baseline: Any, value: Any) -> bool:
    if name in _LENGTHS:
        return bool(abs(value - baseline) <= _SAME_LENGTHS_WITHIN_RATIO * max(value, baseline))
    return bool(value == baseline)


def _ratio(baseline: float, value: float | None) -> float | None:
    if value is None:
        return None
    if baseline == value:
        return 1.0
    return value / baseline if baseline else None


def _verdict(metric: str, ratio: float | None) -> Verdict | None:
    if ratio is None:
        return None
    if abs(ratio - 1.0) <= SAME_WITHIN_RATIO:
        return "same"
    return "better" if (ratio > 1.0) == (metric in _HIGHER_IS_BETTER) else "worse"
