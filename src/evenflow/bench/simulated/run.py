"""Runs a load through a simulated server and returns what it showed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from evenflow.bench.config import rate_for_json
from evenflow.bench.simulated.load import Load
from evenflow.bench.simulated.summary import is_completed, summarize_simulation
from evenflow.bench.simulated.variant import Variant
from evenflow.core.errors import EvenflowError
from evenflow.simulation.result import SimulationResult
from evenflow.simulation.simulator import simulate
from evenflow.workloads.priorities import PriorityFeed


class NothingCompletedError(EvenflowError):
    """No request of a simulated run was completed."""

    code = "nothing_completed"


@dataclass(slots=True, frozen=True, kw_only=True)
class Measures:
    """How runs are judged.

    Attributes:
        slo: by metric (ttft, tpot, e2el), the most milliseconds of a good request.
        percentiles: of latencies.
        price_per_hour: of one device; None for the price that its file names, if any.
    """

    slo: Mapping[str, float]
    percentiles: tuple[float, ...] = (50.0, 90.0, 99.0)
    price_per_hour: float | None = None


@dataclass(slots=True, frozen=True, kw_only=True)
class SimulatedRun:
    """A run and what it showed.

    Attributes:
        label: what tells it from other runs of the same command.
        variant: what was simulated.
        sources: where its figures come from, by what they describe.
        summary: figures and settings under the keys of `evenflow bench serve`, ready for JSON.
        result: what became of each request.
    """

    label: str
    variant: Variant
    sources: Mapping[str, str]
    summary: Mapping[str, Any]
    result: SimulationResult


def run_simulation(
    variant: Variant,
    load: Load,
    measures: Measures,
    *,
    label: str = "",
    log_steps: bool = False,
    explain_ids: Collection[str] = (),
    priorities: Callable[[], PriorityFeed] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> SimulatedRun:
    """Simulate one variant.

    Args:
        variant: the server and the rate.
        load: the requests.
        measures: how it is judged.
        label: of the run; without it, the policy's name.
        log_steps: keep what each step was like, for plots and timelines.
        explain_ids: places of requests in order of arrival, to be explained.
        priorities: begins to play what changes their priorities.
        on_progress: called now and then with the number of requests that ended.

    Raises:
        ConfigError: the variant cannot be.
        InvalidRequestError: the load cannot be read.
        NothingCompletedError: no request was completed.
    """
    result = simulate(
        load.at_rate(variant.request_rate),
        variant.settings(),
        variant.cost_model(),
        log_steps=log_steps,
        explain_ids=explain_ids,
        priorities=None if priorities is None else priorities(),
        on_progress=on_progress,
    )
    if not is_completed(result).any():
        _refuse(result, variant)
    figures = summarize_simulation(
        result,
        percentiles=measures.percentiles,
        goodput=measures.slo,
        price_per_hour=_price(variant, measures),
    )
    label = label or variant.policy
    summary = {**_header(variant, load, label), **figures}
    return SimulatedRun(
        label=label, variant=variant, sources=variant.sources(), summary=summary, result=result
    )


def _price(variant: Variant, measures: Measures) -> float | None:
    """Return the price per hour of all devices."""
    if measures.price_per_hour is None:
        return variant.price_per_hour()
    return measures.price_per_hour * variant.num_devices


def _header(variant: Variant, load: Load, label: str) -> dict[str, Any]:
    """Return what the result says about the run itself, as that of a measured run does."""
    return {
        "date": datetime.now().astimezone().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "simulation",
        "backend": "simulation",
        "label": label,
        "model_id": variant.model_name,
        "tokenizer_id": None,
        "num_prompts": load.num_requests,
        "request_rate": rate_for_json(variant.request_rate),
        "max_concurrency": None,
        "settings": {"trace": load.name, **variant.for_json()},
        "sources": variant.sources(),
    }


def _refuse(result: SimulationResult, variant: Variant) -> None:
    reasons = Counter(result.finish_reason)
    raise NothingCompletedError(
        "no request was completed",
        why=", ".join(f"{num} ended with {reason}" for reason, num in reasons.items()),
        fix=f"Give more than {result.num_kv_blocks} KV blocks of {variant.block_size} tokens with "
        "--kv-memory, or a longer --max-model-len",
    )
