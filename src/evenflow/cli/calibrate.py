"""`evenflow calibrate`: measure this machine's engine, so that it can be simulated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from evenflow.cli.loading import transfer_bar
from evenflow.cli.options import config_options
from evenflow.config import CacheConfig, ExecutionConfig, Loaded, ModelConfig, SchedulerConfig
from evenflow.core.errors import ConfigError

if TYPE_CHECKING:
    from evenflow.execution.costs.profile import CostProfile

_FORMS = {"closed_form": "closed form", "measured": "tables"}
_ROWS = {
    "chunks": "prompt chunks",
    "decodes": "decodes",
    "mixed": "both in one step",
    "mean": "all",
    "worst": "worst",
}


@click.command()
@config_options(ModelConfig, CacheConfig, SchedulerConfig, ExecutionConfig, positional=("model",))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The profile file to write  [default: MODEL.profile.json]",
)
@click.option("--quick", is_flag=True, help="Measure fewer steps, once each; less exact.")
def calibrate(loaded: Loaded, output: Path | None, quick: bool) -> None:
    """Measure what steps of MODEL take on this machine, and write a cost profile.

    Whole steps of the engine are timed, with its settings: chunks of prompts, decodes and both
    together, up to the largest batches and contexts that the settings allow. Nothing else should
    run meanwhile. `evenflow simulate --costs profile:FILE` takes the file.
    """
    from evenflow.engine.build import build_runtime
    from evenflow.engine.calibration.calibrate import calibrate as measure

    name = Path(loaded.config.model.model).name
    path = output or Path(f"{re.sub('[^A-Za-z0-9._-]', '-', name)}.profile.json")
    if not path.parent.is_dir():
        raise ConfigError(
            f"the profile cannot be written to {path}",
            why=f"there is no folder {path.parent}",
            fix="Make the folder, or name another file with --output",
        )
    with transfer_bar() as report:
        runtime = build_runtime(loaded.config, progress=report)
    runtime.warm_up()
    columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Drawing takes time from the engine that is measured.
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=1) as bar:
        task = bar.add_task("")
        profile = measure(
            runtime,
            quick=quick,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    profile.write(path)
    Console().print(error_table(profile))
    click.echo(
        f"{len(profile.steps)} steps of {profile.model} on {profile.machine} are in {path}. "
        f"Nearest to steps that were kept apart: the {_FORMS[profile.best]}.",
        err=True,
    )


def error_table(profile: CostProfile) -> Table:
    """Lay out how far both forms were from steps that they had not seen."""
    table = Table()
    table.add_column("mean error")
    for form, title in _FORMS.items():
        table.add_column(title, justify="right", style="bold" if form == profile.best else "")
    for key, title in _ROWS.items():
        cells = [profile.errors[form].get(key) for form in _FORMS]
        if None not in cells:
            table.add_row(title, *(f"{cell:.1%}" for cell in cells))
    return table
