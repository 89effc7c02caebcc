"""`evenflow simulate`: what servers that need not exist would do with a load."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from evenflow.bench.config import LATENCY_METRICS
from evenflow.bench.simulated.overview import Cell, overview
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
    runs = []
    with progress_bar(len(chosen) * load.num_requests, is_shown=not flags["no_progress"]) as bar:
        for label, variant in chosen.items():
            num_before = len(runs) * load.num_requests
            run = run_simulation(
                variant,
                load,
                measures,
                label=label,
                log_steps=bool(flags["report"] or flags["timeline"]),
                explain_ids=flags["explain"],
                on_progress=lambda num, start=num_before, name=label: bar(name, start + num),
            )
            runs.append(run)
    _show(runs, measures)
    for run in runs:
        _explain(run, flags["explain"], is_named=len(runs) > 1)
    _save(runs, measures, flags)


@contextmanager
def progress_bar(total: int, *, is_shown: bool) -> Iterator[Callable[[str, int], None]]:
    """Show how many simulated requests have ended; gone at the end."""
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
        yield lambda name, num: bar.update(task, completed=num, description=name)


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
        console.print(_overview_table(runs, measures))
    for text in dict.fromkeys(run.sources["step times"] for run in runs):
        click.echo(f"step times: {text}", err=True)


def _overview_table(runs: Sequence[SimulatedRun], measures: Measures) -> Table:
    figures = overview(runs, measures.percentiles)
    table = Table(caption="latencies in ms; below each figure its ratio to the first row")
    table.add_column("")
    for title in figures.titles:
        table.add_column(title, justify="right")
    for label, cells in figures.rows.items():
        table.add_row(Text(label), *map(_cell, cells))
    return table


def _cell(cell: Cell) -> Text:
    text = Text(figure(cell.value))
    if cell.ratio is not None:
        text.append(f"\nx {cell.ratio:.2f}", _COLORS[cell.verdict])
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
