"""Flags and messages that the commands on traces share."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from evenflow.cli.flags import FILE, Decorator, flag, switch
from evenflow.workloads.traces import BadRow, TraceRows, iter_trace

_MAX_SHOWN_BAD_ROWS = 10

skip_bad = switch("--skip-bad", "Leave out rows that cannot be understood, and name them.")
seed = flag("--seed", int, 0, "Of everything that is drawn at random.")
trace_argument: Decorator = click.argument("path", metavar="TRACE", type=FILE)


def opened(path: Path, is_skipping: bool) -> TraceRows:
    """Begin to read a trace; bad rows are named on stderr, or are an error."""
    num_shown = 0

    def show(row: BadRow) -> None:
        nonlocal num_shown
        num_shown += 1
        if num_shown <= _MAX_SHOWN_BAD_ROWS:
            click.echo(f"left out {row}", err=True)

    return iter_trace(path, on_bad_row=show if is_skipping else None)


def report(rows: TraceRows) -> None:
    """Say how many rows were left out, if any were."""
    if rows.num_bad_rows:
        click.echo(f"{rows.num_bad_rows} rows left out", err=True)


def wrote(path: Path, num_requests: int) -> None:
    """Say what has been written."""
    click.echo(f"wrote {num_requests} requests to {path}", err=True)


def rng_of(seed: int) -> np.random.Generator:
    """Return the random generator of a command."""
    return np.random.default_rng(seed)
