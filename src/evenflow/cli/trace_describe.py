"""`evenflow trace describe`: what a trace is like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from evenflow.bench.plots import require_matplotlib
from evenflow.bench.table import figure
from evenflow.bench.trace_plots import plot_summary
from evenflow.cli.flags import NEW_FILE, flag
from evenflow.cli.trace_files import opened, report, rng_of, seed, skip_bad, trace_argument
from evenflow.workloads.analysis import summarize
from evenflow.workloads.analysis.summary import ServiceTime
from evenflow.workloads.transforms import in_order

_STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
_COUNTS = (
    ("requests", "requests"),
    ("sessions and lone requests", "sessions"),
    ("tenants", "tenants"),
    ("share of the busiest tenant", "busiest_tenant_ratio"),
    ("share of the ten busiest", "ten_busiest_tenants_ratio"),
    ("span (s)", "span_s"),
    ("rate (requests/s)", "rate"),
    ("CV of gaps", "gap_cv"),
    ("variance / mean of requests per window", "count_dispersion"),
    ("CV of gaps within windows", "gap_cv_within_windows"),
    ("gamma shape within windows", "gamma_shape_within_windows"),
    ("Weibull shape within windows", "weibull_shape_within_windows"),
    ("mean requests under way", "running_mean"),
    ("peak requests under way", "running_peak"),
    ("requests that tell their prefixes", "prefix_requests"),
    ("prefix blocks seen before", "prefix_hit_ratio"),
)
_QUANTITIES = {
    "prompt_tokens": "prompt (tokens)",
    "own_prompt_tokens": "its new part (tokens)",
    "output_tokens": "answer (tokens)",
    "turns": "turns of a session",
    "think_s": "pause before a turn (s)",
    "tool_s": "of which tools (s)",
}


@click.command(context_settings={"show_default": True})
@trace_argument
@flag("--window", click.FloatRange(min=1e-3), 60.0, "Seconds of a window.", field="window_s")
@flag("--ttft", float, 0.5, "Seconds to the first token, for concurrency.", field="first_s")
@flag("--tpot", float, 0.02, "Seconds per token after it, for concurrency.", field="per_token_s")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@flag("--plot", NEW_FILE, None, "Draw rate, burstiness, concurrency and lengths as PNG.")
@seed
@skip_bad
def describe(
    path: Path,
    window_s: float,
    first_s: float,
    per_token_s: float,
    as_json: bool,
    plot: Path | None,
    seed: int,
    skip_bad: bool,
) -> None:
    """Print what TRACE is like: arrivals, burstiness, sessions, lengths, prefixes.

    Windows are weighed by their requests. Concurrency assumes the given time per answer. Prefixes
    are blocks of 512 tokens that an unbounded cache would have seen.
    """
    if plot is not None:
        require_matplotlib()
    rows = opened(path, skip_bad)
    summary = summarize(
        in_order(rows),
        rng_of(seed),
        window_s=window_s,
        service=ServiceTime(first_s, per_token_s),
    )
    report(rows)
    if as_json:
        click.echo(json.dumps(summary.figures, indent=2))
    else:
        for table in _tables(summary.figures):
            Console().print(table)
    if not rows.is_timed:
        click.echo("The trace has no arrival times; all come at once.", err=True)
    if plot is not None:
        plot_summary(summary, plot)
        click.echo(f"wrote {plot}", err=True)


def _tables(figures: Mapping[str, Any]) -> tuple[Table, Table]:
    """Lay out the single figures, then those of distributions."""
    counts = Table(show_header=False, title=f"Windows of {figures['window_s']:g} s")
    counts.add_column()
    counts.add_column(justify="right")
    for title, key in _COUNTS:
        counts.add_row(title, figure(figures[key]))
    quantities = Table()
    quantities.add_column("")
    for name in _STATISTICS:
        quantities.add_column(name, justify="right")
    for key, title in _QUANTITIES.items():
        if key in figures:
            quantities.add_row(title, *(figure(figures[key][name]) for name in _STATISTICS))
    return counts, quantities
