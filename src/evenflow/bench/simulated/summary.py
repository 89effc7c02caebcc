"""The figures of a simulated run, under the keys of `evenflow bench serve` and some of ours.

slo_attainment_ratio         requests that meet all objectives / all requests, failed ones
                             included; slo_attainment_ratio_ttft and so on by objective
num_preemptions              of all requests, and num_preemptions_<mode>
prefix_cache_hit_ratio       prompt tokens whose KV was found / prompt tokens
peak_kv_usage_ratio          most KV blocks in use at once / all blocks
cost                         price of the devices for as long as the run lasted, in the
                             currency of the price
cost_per_million_tokens      of input and output; cost_per_million_output_tokens of output
simulation_wall_s            what the simulation itself took
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evenflow.bench.metrics import Completed, figures
from evenflow.bench.simulated.curves import delivered
from evenflow.bench.tenants import (
    OUTPUT_WEIGHT,
    PROMPT_WEIGHT,
    contended_interval,
    tenant_figures,
)
from evenflow.core.ids import DEFAULT_TENANT
from evenflow.simulation.result import REJECTED, SimulationResult

_COMPLETED = ("stop", "length")
_MESSAGES = {REJECTED: "the prompt is longer than --max-model-len allows"}
_NO_GAPS: dict[str, Any] = {"gap_s": np.zeros(0), "gap_counts": np.zeros(0, np.int64)}


def summarize_simulation(
    result: SimulationResult,
    *,
    percentiles: Sequence[float],
    goodput: Mapping[str, float],
    price_per_hour: float | None,
) -> dict[str, Any]:
    """Return the figures of a run in which a request was completed.

    Args:
        result: the run.
        percentiles: of latencies.
        goodput: by metric, the most milliseconds of a good request.
        price_per_hour: of all its devices together, None if it is not known.
    """
    duration_s = duration(result)
    done = completed(result)
    summary = figures(
        done,
        num_failed=len(result.end_s) - len(done.end_s),
        duration_s=duration_s,
        tokens_by_second=tokens_by_second(done),
        percentiles=percentiles,
        goodput=goodput,
    )
    summary |= {
        "errors_by_kind": _failures(result),
        **_attainment(done, len(result.end_s), goodput),
        "num_preemptions": int(result.num_preemptions.sum()),
        **_preemptions_by_mode(result),
        "bytes_moved": result.num_bytes_moved,
        "switch_stall_s": result.switch_stall_s,
        "prefix_cache_hit_ratio": float(
            result.num_cached_tokens.sum() / result.num_prompt_tokens.sum()
        ),
        "peak_kv_usage_ratio": result.peak_kv_blocks / result.num_kv_blocks,
        "num_steps": result.num_steps,
        "simulation_wall_s": result.wall_s,
    }
    if price_per_hour is not None:
        summary |= _cost(summary, price_per_hour * duration_s / 3600)
    if any(tenant != DEFAULT_TENANT for tenant in result.tenant):
        summary |= _by_tenant(result, done, percentiles, goodput)
    return summary


def duration(result: SimulationResult) -> float:
    """Return the seconds from the first arrival to the last end."""
    return float(np.nanmax(result.end_s) - result.arrival_s[0])


def is_completed(result: SimulationResult) -> npt.NDArray[np.bool_]:
    """Return which requests got their whole answer."""
    return np.array([reason in _COMPLETED for reason in result.finish_reason], dtype=np.bool_)


def completed(result: SimulationResult) -> Completed:
    """Return the completed requests as columns."""
    chosen = is_completed(result)
    return Completed(
        start_s=result.arrival_s[chosen],
        first_s=result.first_token_s[chosen],
        end_s=result.end_s[chosen],
        queue_s=np.zeros(np.count_nonzero(chosen)),
        num_prompt_tokens=result.num_prompt_tokens[chosen],
        num_output_tokens=result.num_output_tokens[chosen],
        gap_s=result.itl_s,
        gap_counts=result.itl_counts,
    )


def tokens_by_second(done: Completed) -> npt.NDArray[np.float64]:
    """Return the output tokens of each second from the first arrival on."""
    if not len(done.end_s):
        return np.zeros(0)
    begin_s = done.start_s.min()
    seconds = begin_s + np.arange(np.ceil(done.end_s.max() - begin_s) + 1)
    at_first, afterwards = np.ones(len(done.end_s)), done.num_output_tokens - 1.0
    return np.diff(delivered(done.first_s, done.end_s, at_first, afterwards, seconds))


def service(done: Completed, times_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the service (weighted tokens) that requests have received at points in time.

    A prompt counts at its first token, as in `bench.tenants`.
    """
    at_first = PROMPT_WEIGHT * done.num_prompt_tokens + OUTPUT_WEIGHT
    afterwards = OUTPUT_WEIGHT * (done.num_output_tokens - 1)
    return delivered(done.first_s, done.end_s, at_first, afterwards, times_s)


def by_owner(tenants: Sequence[str]) -> dict[str, npt.NDArray[np.intp]]:
    """Return the places at which each tenant occurs, ascending."""
    codes: dict[str, int] = {}
    owners = np.array([codes.setdefault(tenant, len(codes)) for tenant in tenants], dtype=np.intp)
    order = np.argsort(owners, kind="stable")
    bounds = np.cumsum(np.bincount(owners))[:-1]
    return dict(zip(codes, np.split(order, bounds), strict=True))


def select(done: Completed, places: npt.NDArray[np.intp]) -> Completed:
    """Return some of the requests. Gaps are known of all together only, so they have none."""
    names = ("start_s", "first_s", "end_s", "queue_s", "num_prompt_tokens", "num_output_tokens")
    return Completed(**{name: getattr(done, name)[places] for name in names}, **_NO_GAPS)


def tenants_of_completed(result: SimulationResult) -> list[str]:
    """Return whose each completed request is."""
    pairs = zip(result.tenant, is_completed(result), strict=True)
    return [tenant for tenant, chosen in pairs if chosen]


def _attainment(done: Completed, num: int, goodput: Mapping[str, float]) -> dict[str, float | None]:
    if not goodput:
        return {"slo_attainment_ratio": None}
    met = {f"_{name}": done.meets(name, limit_ms) for name, limit_ms in goodput.items()}
    met[""] = done.meets_all(goodput)
    return {f"slo_attainment_ratio{k}": float(np.count_nonzero(v) / num) for k, v in met.items()}


def _preemptions_by_mode(result: SimulationResult) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for (mode, _, _), num in result.preemption_counts.items():
        counts[f"num_preemptions_{mode}"] += num
    return dict(counts)


def _cost(summary: Mapping[str, Any], cost: float) -> dict[str, float | None]:
    num_output = summary["total_output_tokens"]
    num_tokens = num_output + summary["total_input_tokens"]
    return {
        "cost": cost,
        "cost_per_million_tokens": cost / num_tokens * 1e6,
        "cost_per_million_output_tokens": cost / num_output * 1e6,
    }


def _failures(result: SimulationResult) -> dict[str, dict[str, Any]]:
    reasons = Counter(reason for reason in result.finish_reason if reason not in _COMPLETED)
    return {
        reason: {"count": num, "first_message": _MESSAGES.get(reason, "")}
        for reason, num in reasons.items()
    }


def _by_tenant(
    result: SimulationResult,
    done: Completed,
    percentiles: Sequence[float],
    goodput: Mapping[str, float],
) -> dict[str, Any]:
    """Return the figures of each tenant, and of fairness between them."""
    duration_s = duration(result)
    owners = by_owner(result.tenant)
    interval = contended_interval(
        [float(result.arrival_s[places].min()) for places in owners.values()],
        [float(np.nanmax(result.end_s[places])) for places in owners.values()],
    )
    done_places = by_owner(tenants_of_completed(result))
    none = np.zeros(0, np.intp)
    tenants, ours = {}, {}
    for tenant, places in owners.items():
        own = select(done, done_places.get(tenant, none))
        summary = figures(
            own,
            num_failed=len(places) - len(own.end_s),
            duration_s=duration_s,
            tokens_by_second=tokens_by_second(own),
            percentiles=percentiles,
            goodput=goodput,
        )
        before, after = service(own, np.array(interval))
        tenants[tenant] = summary, float(after - before)
        ours[tenant] = {
            "num_preemptions": int(result.num_preemptions[places].sum()),
            **_attainment(own, len(places), goodput),
        }
    fairness = tenant_figures(tenants, interval)
    for tenant, added in ours.items():
        fairness["tenants"][tenant] |= added
    return fairness
