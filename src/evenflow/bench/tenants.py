"""How a run went for each tenant, and how evenly the server divided itself between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evenflow.bench.metrics import summarize
from evenflow.fairness.report import jain_index, service_gap

if TYPE_CHECKING:
    from evenflow.workloads.client import RequestRecord

Interval = tuple[float, float]
PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""What a token counts as service, as in VTC (arXiv 2401.00588, section 3)."""

_PER_TENANT = (
    *("completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput"),
    *("request_goodput", "output_throughput"),
)


def by_tenant(
    records: Sequence[RequestRecord],
    duration_s: float,
    percentiles: Sequence[float],
    goodput: Mapping[str, float],
) -> dict[str, Any]:
    """Return the figures of each tenant, and of fairness between them.

    Fairness is judged over the contended interval: from when every tenant has a request with the
    server until one of them has none left to come. Over the whole run it would only tell what was
    asked for, since all of it is served in the end.

    Returns:
        "tenants", by name the main figures of the run and `service_tokens`, and "jain_index" and
        "service_gap_tokens" over the contended interval, None if there is none. Tenants weigh the
        same.
    """
    groups: dict[str, list[RequestRecord]] = {}
    for record in records:
        groups.setdefault(record.request.tenant, []).append(record)
    interval = contended_interval(
        [min(record.start_s for record in group) for group in groups.values()],
        [max(record.end_s for record in group) for group in groups.values()],
    )
    return tenant_figures(
        {
            tenant: (
                summarize(group, duration_s, percentiles, goodput),
                sum(_service(record, *interval) for record in group),
            )
            for tenant, group in groups.items()
        },
        interval,
    )


def contended_interval(starts_s: Collection[float], ends_s: Collection[float]) -> Interval:
    """Return the interval in which fairness is judged, which is empty if its end is not later.

    Args:
        starts_s: of each tenant, when its first request was sent.
        ends_s: of each tenant, when its last request ended.
    """
    return max(starts_s), min(ends_s)


def tenant_figures(
    tenants: Mapping[str, tuple[Mapping[str, Any], float]], interval: Interval
) -> dict[str, Any]:
    """Return what `by_tenant` does.

    Args:
        tenants: by name, the summary of a tenant's requests and its service within `interval`.
        interval: the contended one.
    """
    services = [service for _, service in tenants.values()]
    is_contended = len(tenants) > 1 and interval[1] > interval[0]
    return {
        "tenants": {
            tenant: {name: summary[name] for name in _PER_TENANT}
            | {name: value for name, value in summary.items() if name.endswith("_ms")}
            | {"service_tokens": service}
            for tenant, (summary, service) in sorted(tenants.items())
        },
        "jain_index": jain_index(services) if is_contended else None,
        "service_gap_tokens": service_gap(services) if is_contended else None,
    }


def _service(record: RequestRecord, begin_s: float, end_s: float) -> float:
    """Return the weighted tokens of a request within an interval.

    The prompt counts when the first chunk comes, when it must have been computed.
    """
    times = np.asarray(record.chunk_times)
    if not len(times):
        return 0.0
    num_inside = np.count_nonzero((begin_s <= times) & (times <= end_s))
    output = OUTPUT_WEIGHT * record.num_output_tokens * float(num_inside) / len(times)
    is_prompt_inside = begin_s <= times[0] <= end_s
    return output + (PROMPT_WEIGHT * record.num_prompt_tokens if is_prompt_inside else 0.0)
