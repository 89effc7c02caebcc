"""`evenflow bench`: measure a server under load, and compare measurements."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from evenflow.bench.compare import Comparison, compare, differences, label
from evenflow.bench.config import BenchConfig
from evenflow.bench.plots import plot_comparison, plot_run, plot_timeline, require_matplotlib
from evenflow.bench.result import BenchResult, read_result
from evenflow.bench.table import error_table, figure, result_table, tenant_table
from evenflow.cli.bench_options import SAMPLING, bench_options
from evenflow.cli.flags import FILE, NEW_FILE
from evenflow.cli.loading import transfer_bar
from evenflow.cli.options import config_options
from evenflow.config import Loaded, PathsConfig
from evenflow.core.errors import ConfigError, EvenflowError
from evenflow.workloads.traces import write_trace

if TYPE_CHECKING:
    from evenflow.tokenization import Tokenizer
    from evenflow.workloads.client import RequestRecord
    from evenflow.workloads.request import WorkloadRequest

_COLORS = {"better": "green", "worse": "red", "same": "dim", None: "dim"}


class LoadFailedError(EvenflowError):
    """No request of a run succeeded."""

    code = "load_failed"


@click.group()
def bench() -> None:
    """Measure a server under load, and compare measurements."""


@bench.command(context_settings={"show_default": True})
@bench_options
@config_options(PathsConfig)
def serve(loaded: Loaded, **flags: Any) -> None:
    """Send load to a server that speaks OpenAI's API, and measure its answers.

    Flags and keys of the result are those of `vllm bench serve`. The figures are defined in the
    documentation of evenflow.bench.metrics.
    """
    if flags["plot"] or flags["plot_timeline"]:
        require_matplotlib()
    config = _config(flags)
    tokenizer = _load_tokenizer(loaded, config.tokenizer)
    result = _run(config, tokenizer, flags)
    _show(result, flags["percentile_metrics"])
    _save(result, flags)
    if not result.summary["completed"]:
        kinds = ", ".join(result.summary["errors_by_kind"])
        raise LoadFailedError("no request was answered", why=f"kinds of failure: {kinds}")


@bench.command("compare")
@click.argument("results", nargs=-1, required=True, type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--plot", type=NEW_FILE, help="Draw the ratios as PNG.")
def compare_results(results: tuple[Path, ...], as_json: bool, plot: Path | None) -> None:
    """Print ratios between the figures of the RESULTS, of which the first (A) is the baseline."""
    if len(results) < 2:
        raise click.UsageError("name at least two result files")
    contents = [read_result(path) for path in results]
    comparisons = compare(contents)
    notes = differences(contents)
    if as_json:
        figures = {c.metric: {"values": c.values, "ratios": c.ratios} for c in comparisons}
        click.echo(json.dumps({"figures": figures, "differences": notes}, indent=2))
    else:
        Console().print(_comparison_table(results, comparisons))
    if notes and not as_json:
        click.echo("The runs are not of the same load:", err=True)
        for note in notes:
            click.echo(f"  {note}", err=True)
    if plot is not None:
        require_matplotlib()
        plot_comparison(comparisons, plot)


def _config(flags: Mapping[str, Any]) -> BenchConfig:
    names = {field.name for field in fields(BenchConfig)}
    values = {name: value for name, value in flags.items() if name in names}
    values["base_url"] = flags["base_url"] or f"http://{flags['host']}:{flags['port']}"
    values["sampling"] = {name: flags[name] for name in SAMPLING if flags[name] is not None}
    return BenchConfig(**values, keep_text=flags["save_detailed"])


def _load_tokenizer(loaded: Loaded, name: str | None) -> Tokenizer | None:
    from evenflow.models.sources import resolve
    from evenflow.tokenization import load_tokenizer

    if name is None:
        return None
    with transfer_bar() as report:
        files = resolve(name, cache_dir=loaded.config.paths.cache, weights=False, progress=report)
    return load_tokenizer(files.path)


def _run(config: BenchConfig, tokenizer: Tokenizer | None, flags: Mapping[str, Any]) -> BenchResult:
    try:
        from evenflow.bench.run import run_benchmark
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the load tool is not installed", why=str(error), fix="pip install 'evenflow[bench]'"
        ) from error
    with _LoadBar(is_shown=not flags["no_progress"]) as bar:
        result = run_benchmark(config, tokenizer=tokenizer, on_start=bar.start, on_done=bar.count)
    return BenchResult(result.summary, result.records, flags["metadata"])


class _LoadBar:
    """Counts answers and tokens while the load runs; gone at the end."""

    def __init__(self, *, is_shown: bool) -> None:
        self._bar = Progress(
            TextColumn("requests"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed, {task.fields[rate]:.0f} output tok/s"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            # Drawing takes time from the client that measures.
            refresh_per_second=2,
            transient=True,
            disable=not is_shown,
        )
        self._task = TaskID(0)
        self._num_failed = 0
        self._num_tokens = 0

    def __enter__(self) -> _LoadBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, requests: Sequence[WorkloadRequest]) -> None:
        """Show the bar, empty."""
        self._task = self._bar.add_task("", total=len(requests), failed=0, rate=0.0)
        self._bar.start()

    def count(self, record: RequestRecord) -> None:
        """Take in a request that ended."""
        self._num_failed += record.failure is not None
        self._num_tokens += record.num_output_tokens
        rate = self._num_tokens / record.end_s if record.end_s else 0.0
        self._bar.update(self._task, advance=1, failed=self._num_failed, rate=rate)


def _show(result: BenchResult, metrics: Collection[str]) -> None:
    """Print the tables: figures to stdout, failures to stderr."""
    console = Console()
    console.print(result_table(result.summary, metrics))
    if "tenants" in result.summary:
        console.print(tenant_table(result.summary))
    if result.summary["failed"]:
        Console(stderr=True).print(error_table(result.summary))


def _save(result: BenchResult, flags: Mapping[str, Any]) -> None:
    """Write the files that were asked for."""
    name = flags["result_filename"] or result.default_filename()
    path = (flags["result_dir"] or Path()) / name
    written = []
    if flags["save_result"] or flags["save_detailed"]:
        result.save(path, detailed=flags["save_detailed"])
        written.append(path)
    if flags["save_trace"] is not None:
        write_trace(flags["save_trace"], [record.request for record in result.records])
        written.append(flags["save_trace"])
    if flags["plot"]:
        written.append(path.with_suffix(".png"))
        plot_run(result.records, written[-1])
    if flags["plot_timeline"]:
        written.append(path.with_suffix(".timeline.png"))
        plot_timeline(result.records, written[-1])
    for file in written:
        click.echo(f"wrote {file}", err=True)


def _comparison_table(results: Sequence[Path], comparisons: Sequence[Comparison]) -> Table:
    caption = ", ".join(f"{label(index)}: {path.name}" for index, path in enumerate(results))
    table = Table(caption=caption)
    table.add_column("")
    for index in range(len(results)):
        table.add_column(label(index), justify="right")
    for index in range(1, len(results)):
        table.add_column(f"{label(index)}/A", justify="right")
        table.add_column("")
    for comparison in comparisons:
        cells = [figure(value) for value in comparison.values]
        for ratio, verdict in zip(comparison.ratios, comparison.verdicts, strict=True):
            color = _COLORS[verdict]
            cells += [f"[{color}]{figure(ratio)}[/]", f"[{color}]{verdict or ''}[/]"]
        table.add_row(comparison.metric, *cells)
    return table
