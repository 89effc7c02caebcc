"""`evenflow simulate`: what servers that need not exist would do with a load."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from evenflow.bench.config import LATENCY_METRICS
from evenflow.bench.simulated.overview import Cell, Overview, overview
from evenflow.bench.simulated.report import write_report
from evenflow.bench.simulated.run import Measures, SimulatedRun, run_simulation
from evenflow.bench.simulated.timeline import write_timeline
from evenflow.bench.table import error_table, figure, result_table, tenant_table
from evenflow.cli.explain_view import show_life
from evenflow.cli.flags import NEW_FILE, switch
from evenflow.cli.simulate_options import (
    SWEEP,
    load_of,
    measures_of,
    simulation_options,
    variants,
)
from evenflow.core.errors import ConfigError
from evenflow.workloads.priorities import open_priorities

_LABEL_WIDTH = 16
_LARGE = 100
"""Figures from which on a narrow table has no room for decimals."""

_COLORS = {"better": "green", "worse": "red", "same": "dim", None: "dim"}


@click.command(context_settings={"show_default": True})
@simulation_options
@SWEEP
@click.option(
    "--explain",
    multiple=True,
    metavar="REQUEST_ID",
    help="Tell where the time of a request went: its place in order of arrival, from 0; "
    "repeatable.",
)
@click.option(
    "--priority-trace",
    metavar="SOURCE",
    help="Change priorities while requests wait and run, as a file says, or random:0.04 (an update "
    "every 25 steps) or markov:0.02; for policies that look at them.",
)
@click.option(
    "--save-result",
    type=NEW_FILE,
    help="Write the figures as JSON: an object, or a list of them for several runs.",
)
@click.option("--report", type=NEW_FILE, help="Write a report with plots (.html).")
@click.option(
    "--timeline",
    type=NEW_FILE,
    help="Write steps and requests for chrome://tracing and ui.perfetto.dev (.json).",
)
@switch("--no-progress", "Show no progress bar.")
def simulate(trace: str, **flags: Any) -> None:
    """Play TRACE through a simulated server, and measure as `evenflow bench serve` does.

    TRACE is a file of requests (.jsonl or .csv, also .gz), or a generator: random, sharegpt or
    prefix_repetition. The server is this one: its scheduler and memory manager run as they would,
    under a clock that a cost model advances. Several policies, or a --sweep, are compared.
    """
    load = load_of(trace, flags)
    measures = measures_of(flags)
    chosen = variants(flags)
    source = flags["priority_trace"]
    priorities = None if source is None else open_priorities(source, flags["seed"])
    runs: list[SimulatedRun] = []
    with progress_bar(len(chosen) * load.num_requests, is_shown=not flags["no_progress"]) as bar:
        for label, variant in chosen.items():
            run = run_simulation(
                variant,
                load,
                measures,
                label=label,
                log_steps=bool(flags["report"] or flags["timeline"]),
                explain_ids=flags["explain"],
                priorities=priorities,
                on_progress=partial(bar, label, len(runs) * load.num_requests),
            )
            runs.append(run)
    _show(runs, measures)
    _save(runs, measures, flags)
    for run in runs:
        _explain(run, flags["explain"], is_named=len(runs) > 1)


@contextmanager
def progress_bar(total: int, *, is_shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show how many simulated requests have ended; gone at the end.

    What it yields takes the name of a run, the requests of runs before it, and those of its own.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    hidden = not (is_shown and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=total)

        def show(name: str, num_before: int, num: int) -> None:
            bar.update(task, completed=num_before + num, description=name)

        yield show


def _show(runs: Sequence[SimulatedRun], measures: Measures) -> None:
    """Print the tables: figures to stdout, failures and sources to stderr."""
    console, beside = Console(), Console(stderr=True)
    if len(runs) == 1:
        summary = runs[0].summary
        console.print(result_table(summary, LATENCY_METRICS, "Simulation Result"))
        if "tenants" in summary:
            console.print(tenant_table(summary))
        if summary["failed"]:
            beside.print(error_table(summary))
    else:
        _show_overview(runs, measures, console)
    for text in dict.fromkeys(run.sources["step times"] for run in runs):
        click.echo(f"step times: {text}", err=True)


def _show_overview(runs: Sequence[SimulatedRun], measures: Measures, console: Console) -> None:
    """Print a row per run, with as many of the figures as there is room for."""
    figures = overview(runs, measures.percentiles)
    num_shown = len(figures.titles)
    unbounded = console.options.update(width=sys.maxsize)
    while num_shown > 1:
        table = _overview_table(figures, num_shown)
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
        num_shown -= 1
    console.print(_overview_table(figures, num_shown))
    if num_shown < len(figures.titles):
        hidden = ", ".join(figures.titles[num_shown:])
        click.echo(f"no room for {hidden}: --report and --save-result have them", err=True)


def _overview_table(figures: Overview, num_shown: int) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="latencies in ms, cost per million tokens; below each its ratio to the first row",
    )
    table.add_column("", overflow="fold", max_width=_LABEL_WIDTH)
    for title in figures.titles[:num_shown]:
        table.add_column(title, justify="right", no_wrap=True)
    for label, cells in figures.rows.items():
        table.add_row(Text(label), *map(_cell, cells[:num_shown]))
    return table


def _cell(cell: Cell) -> Text:
    is_large = cell.value is not None and abs(cell.value) >= _LARGE
    text = Text(f"{cell.value:.0f}" if is_large else figure(cell.value))
    if cell.ratio is not None:
        text.append(f"\nx{cell.ratio:.2f}", _COLORS[cell.verdict])
    return text


def _explain(run: SimulatedRun, request_ids: Sequence[str], *, is_named: bool) -> None:
    """Print where the time of requests went.

    Raises:
        ConfigError: there is no such request.
    """
    for request_id in request_ids:
        explanation = run.result.explanations.get(request_id)
        if explanation is None:
            raise ConfigError(
                f"there is no request {request_id!r} to explain",
                why="requests are named by their place in order of arrival, from 0, and rejected "
                "ones have no history",
                fix=f"Name a number below {run.summary['num_prompts']}",
            )
        if is_named:
            click.echo(f"{run.label}:")
        show_life(explanation.to_json())


def _save(runs: Sequence[SimulatedRun], measures: Measures, flags: Mapping[str, Any]) -> None:
    """Write the files that were asked for."""
    summaries = [run.summary for run in runs]
    content = summaries[0] if len(runs) == 1 else summaries
    writers: dict[str, Callable[[Path], object]] = {
        "save_result": lambda path: path.write_text(json.dumps(content) + "\n", encoding="utf-8"),
        "report": lambda path: write_report(runs, measures, path),
        "timeline": lambda path: write_timeline(runs, path),
    }
    for name, write in writers.items():
        path = flags[name]
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            click.echo(f"wrote {path}", err=True)
