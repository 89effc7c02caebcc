"""`evenflow run-batch`: answer a file of requests in OpenAI's batch format."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from evenflow.cli.loading import load_llm
from evenflow.cli.options import config_options
from evenflow.config import CacheConfig, ExecutionConfig, Loaded, ModelConfig, SchedulerConfig


@click.command("run-batch")
@config_options(ModelConfig, CacheConfig, SchedulerConfig, ExecutionConfig, positional=("model",))
@click.option(
    "-i",
    "--input-file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSONL file, one request a line.",
)
@click.option(
    "-o",
    "--output-file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSONL file, one answer a line; an unfinished one is continued.",
)
def run_batch(loaded: Loaded, input_file: Path, output_file: Path) -> None:
    """Answer every request of a file, by MODEL.

    A line that cannot be answered gets an error line; the others go on. An interrupted run started
    again answers what is missing and nothing twice.
    """
    from evenflow.engine.batch_file import BatchFile
    from evenflow.engine.batch_run import BatchRun

    batch = BatchFile(input_file, output_file)
    if batch.num_missing:
        run = BatchRun(batch, load_llm(loaded.config), time.time)
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("requests", total=batch.num_lines, completed=batch.num_done)
            for _ in run.answer():
                bar.advance(task)
    click.echo(f"{batch.num_lines} requests, {batch.num_failed} failed, in {output_file}", err=True)
