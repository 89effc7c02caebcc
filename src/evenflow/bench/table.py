"""The result of a run as a table for people."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from evenflow.core.wording import printable

_TITLES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
    "client_queue_time": "Client-side Queueing",
}
_NAMES = {"client_queue_time": "client queue time"}
_COUNTS = (
    ("Successful requests", "completed"),
    ("Failed requests", "failed"),
    ("Maximum request concurrency", "max_concurrency"),
    ("Request rate configured (req/s)", "request_rate"),
    ("Benchmark duration (s)", "duration"),
    ("Total input tokens", "total_input_tokens"),
    ("Total generated tokens", "total_output_tokens"),
    ("Request throughput (req/s)", "request_throughput"),
    ("Request goodput (req/s)", "request_goodput"),
    ("Output token throughput (tok/s)", "output_throughput"),
    ("Peak output token throughput (tok/s)", "max_output_tokens_per_s"),
    ("Peak concurrent requests", "max_concurrent_requests"),
    ("Total token throughput (tok/s)", "total_token_throughput"),
    ("Share of requests within their objectives", "slo_attainment_ratio"),
    ("Preemptions", "num_preemptions"),
    ("Bytes moved between tiers", "bytes_moved"),
    ("Peak share of KV memory in use", "peak_kv_usage_ratio"),
    ("Share of prompt tokens found in the cache", "prefix_cache_hit_ratio"),
    ("Cost per million tokens", "cost_per_million_tokens"),
    ("Cost per million output tokens", "cost_per_million_output_tokens"),
    ("Steps simulated", "num_steps"),
    ("Real seconds this took", "simulation_wall_s"),
    ("Client CPU per output token (us)", "client_cpu_us_per_token"),
    ("Latest sending after its time (ms)", "max_send_lag_ms"),
)
_TENANT_COLUMNS = {
    "requests": "completed",
    "failed": "failed",
    "output tok/s": "output_throughput",
    "service": "service_tokens",
    "SLO ratio": "slo_attainment_ratio",
    "preemptions": "num_preemptions",
    "TTFT p50 ms": "median_ttft_ms",
    "TPOT p50 ms": "median_tpot_ms",
}


def result_table(
    summary: Mapping[str, Any],
    metrics: Collection[str],
    title: str = "Serving Benchmark Result",
) -> Table:
    """Lay out a run's figures in sections.

    Args:
        summary: of a `BenchResult`.
        metrics: the latencies to show: ttft, tpot, itl, e2el, client_queue_time.
        title: of the table.
    """
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, key in _COUNTS:
        if summary.get(key) is not None:
            table.add_row(name, figure(summary[key]))
    measured = [m for m in _TITLES if m in metrics and summary[f"mean_{m}_ms"] is not None]
    for metric in measured:
        table.add_section()
        table.add_row(f"[bold]{_TITLES[metric]}[/]", "")
        for key, value in summary.items():
            statistic, _, rest = key.partition("_")
            if rest == f"{metric}_ms" and statistic != "std":
                name = _NAMES.get(metric, metric.upper())
                table.add_row(f"{statistic.capitalize()} {name} (ms)", figure(value))
    return table


def tenant_table(summary: Mapping[str, Any]) -> Table:
    """Lay out the figures of each tenant."""
    fairness = "Jain index {}, service gap {} weighted tokens, while all had requests".format(
        figure(summary["jain_index"]), figure(summary["service_gap_tokens"])
    )
    table = Table(title="Tenants", caption=fairness)
    table.add_column("tenant")
    tenants = summary["tenants"]
    columns = {
        title: key
        for title, key in _TENANT_COLUMNS.items()
        if any(figures.get(key) is not None for figures in tenants.values())
    }
    for title in columns:
        table.add_column(title, justify="right")
    for tenant, figures in tenants.items():
        cells = [figure(figures[key]) for key in columns.values()]
        table.add_row(Text(printable(tenant) or "(none)"), *cells)
    return table


def error_table(summary: Mapping[str, Any]) -> Table:
    """Lay out the failures by kind, the most frequent first."""
    table = Table(title="Failures", show_lines=True)
    for title in ("kind", "count", "first message"):
        table.add_column(title, overflow="fold")
    kinds = summary["errors_by_kind"].items()
    for kind, failure in sorted(kinds, key=lambda item: -item[1]["count"]):
        table.add_row(kind, str(failure["count"]), failure["first_message"])
    return table


def figure(value: object) -> str:
    """Return a figure as text: counts in full, others with as many digits as one reads."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:.2f}" if abs(value) < 1e4 else f"{value:.0f}"
