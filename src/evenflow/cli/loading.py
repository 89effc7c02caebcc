"""Loads a model for a verb, and shows on stderr how far a long load is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from evenflow.config import EvenflowConfig

if TYPE_CHECKING:
    from evenflow.engine.llm import LLM
    from evenflow.models.progress import Progress as Report


@contextmanager
def transfer_bar() -> Iterator[Report]:
    """Show a bar for each thing that is fetched or prepared; nothing if there is none."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, num_done: int, num_total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=num_total)
            bar.update(tasks[what], completed=num_done, total=num_total)

        yield report


def load_llm(config: EvenflowConfig) -> LLM:
    """Load the configured model, with a bar while it is fetched or prepared for the first time."""
    from evenflow.engine.llm import LLM

    with transfer_bar() as report:
        return LLM(config=config, progress=report)
