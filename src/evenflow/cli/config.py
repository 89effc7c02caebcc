"""`evenflow config`: what is set, and who set it."""

from __future__ import annotations

import json

import click

from evenflow.cli.options import config_options
from evenflow.config import AREAS, Loaded, options_of


@click.group()
def config() -> None:
    """Show settings and where their values come from."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@config_options(*AREAS)
def show(loaded: Loaded, as_json: bool) -> None:
    """Print every setting with its value and its origin.

    Takes all flags there are, to try out what they would change.
    """
    if as_json:
        click.echo(json.dumps(_as_json(loaded), indent=2))
        return
    rows = [("AREA", "SETTING", "VALUE", "ORIGIN")]
    rows += [
        (
            option.area.table,
            option.name,
            _as_text(loaded.value(option)),
            str(loaded.origins[option.name]),
        )
        for option in options_of(*AREAS)
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _as_json(loaded: Loaded) -> dict[str, dict[str, object]]:
    content: dict[str, dict[str, object]] = {}
    for area, values in loaded.config.model_dump(mode="json").items():
        for name, value in values.items():
            origin = str(loaded.origins[name])
            content[name] = {"area": area, "value": value, "origin": origin}
    return content


def _as_text(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
