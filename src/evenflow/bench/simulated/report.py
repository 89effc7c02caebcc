"""A report on simulated runs: one HTML file without scripts that loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path

from evenflow.bench.simulated.charts import figure as chart_figure
from evenflow.bench.simulated.overview import Cell, overview
from evenflow.bench.simulated.plots import charts_of
from evenflow.bench.simulated.report_style import STYLE
from evenflow.bench.simulated.run import Measures, SimulatedRun
from evenflow.bench.table import figure

MAX_TENANT_ROWS = 50

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
"""
_TENANT_COLUMNS = {
    "requests": "completed",
    "failed": "failed",
    "output tok/s": "output_throughput",
    "service": "service_tokens",
    "SLO ratio": "slo_attainment_ratio",
    "TTFT p50 ms": "median_ttft_ms",
    "TPOT p50 ms": "median_tpot_ms",
    "preemptions": "num_preemptions",
}


def write_report(runs: Sequence[SimulatedRun], measures: Measures, path: Path) -> None:
    """Write a report on runs whose steps were logged."""
    path.write_text(report(runs, measures), encoding="utf-8")


def report(runs: Sequence[SimulatedRun], measures: Measures) -> str:
    """Return the report."""
    first = runs[0]
    title = f"Simulation of {first.summary['settings']['trace']}"
    slo = ", ".join(f"{metric} within {limit:g} ms" for metric, limit in measures.slo.items())
    facts = [
        f"{first.summary['num_prompts']:,} requests",
        *([f"objectives: {slo}"] if slo else []),
        "latencies in ms",
        f"evenflow {version('evenflow')}",
        datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    ]
    charts = "".join(chart_figure(chart) for chart in charts_of(runs, measures))
    return "\n".join(
        [
            f"{_HEAD}<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>",
            f'<p class="soft">{escape(" · ".join(facts))}</p>',
            _overview(runs, measures),
            f'<h2>Over requests and time</h2>\n<div class="charts">{charts}</div>',
            "<h2>Settings, and where figures come from</h2>",
            _settings(runs),
            "<h2>All figures</h2>",
            *(_details(run, is_open=len(runs) == 1) for run in runs),
            "</body>\n</html>\n",
        ]
    )


def _overview(runs: Sequence[SimulatedRun], measures: Measures) -> str:
    """Return tiles for a single run, a table for several."""
    table = overview(runs, measures.percentiles)
    if len(runs) == 1:
        (cells,) = table.rows.values()
        tiles = zip(table.titles, cells, strict=True)
        boxes = "".join(
            f'<div><span class="soft">{escape(title)}</span><b>{figure(cell.value)}</b></div>'
            for title, cell in tiles
        )
        return f'<div class="tiles">{boxes}</div>'
    rows = "".join(
        f"<tr><td>{escape(label)}</td>{''.join(map(_cell, cells))}</tr>"
        for label, cells in table.rows.items()
    )
    head = "<th></th>" + "".join(f'<th class="number">{escape(t)}</th>' for t in table.titles)
    return (
        "<h2>Side by side, with ratios to the first</h2>\n"
        f'<div class="card overview"><table><tr>{head}</tr>{rows}</table></div>'
    )


def _cell(cell: Cell) -> str:
    ratio = ""
    if cell.ratio is not None:
        ratio = f'<small class="{cell.verdict}">&times;{cell.ratio:.2f}</small>'
    return f'<td class="number">{figure(cell.value)}{ratio}</td>'


def _settings(runs: Sequence[SimulatedRun]) -> str:
    """Return what the runs have in common, and where their figures come from."""
    per_run = [{"trace": r.summary["settings"]["trace"], **r.variant.for_json()} for r in runs]
    shared = {
        name: value
        for name, value in per_run[0].items()
        if all(settings[name] == value for settings in per_run)
    }
    sources = {(what, text) for run in runs for what, text in run.sources.items()}
    rows = [(name, str(value)) for name, value in shared.items() if value is not None]
    rows += [(f"source of {what}", text) for what, text in sorted(sources)]
    return f'<div class="card settings">{_two_columns(rows)}</div>'


def _details(run: SimulatedRun, *, is_open: bool) -> str:
    """Return all figures of a run, and those of its tenants."""
    rows = [
        (name, figure(value))
        for name, value in run.summary.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return (
        f"<details{' open' if is_open else ''}><summary>{escape(run.label)}</summary>"
        f"{_tenants(run.summary.get('tenants', {}))}"
        f'<div class="card">{_two_columns(rows, "number")}</div></details>'
    )


def _tenants(tenants: Mapping[str, Mapping[str, float | None]]) -> str:
    if not tenants:
        return ""
    most = sorted(tenants, key=lambda tenant: -(tenants[tenant]["service_tokens"] or 0.0))
    head = "<th>tenant</th>" + "".join(f'<th class="number">{t}</th>' for t in _TENANT_COLUMNS)
    rows = "".join(
        f"<tr><td>{escape(tenant)}</td>"
        + "".join(
            f'<td class="number">{figure(tenants[tenant].get(key))}</td>'
            for key in _TENANT_COLUMNS.values()
        )
        + "</tr>"
        for tenant in most[:MAX_TENANT_ROWS]
    )
    num_hidden = len(tenants) - MAX_TENANT_ROWS
    note = f'<p class="soft">and {num_hidden} more</p>' if num_hidden > 0 else ""
    return f'<div class="card"><table><tr>{head}</tr>{rows}</table>{note}</div>'


def _two_columns(rows: Iterable[tuple[str, str]], look: str = "") -> str:
    cells = "".join(
        f'<tr><th>{escape(name)}</th><td class="{look}">{escape(text)}</td></tr>'
        for name, text in rows
    )
    return f"<table>{cells}</table>"
