"""How commands with many flags write them down, and read values that have parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
Callback = Callable[[click.Context, click.Parameter, Any], Any]
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


def numbers(separator: str, default: float | None = None) -> Callback:
    """Return a reader of NAME:NUMBER pairs; `default` stands for a number that is missing."""

    def read(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Any:
        numbers: dict[str, float] = {}
        for pair in (part for value in values for part in value.split(separator) if part):
            name, colon, number = pair.strip().partition(":")
            try:
                numbers[name] = default if default is not None and not colon else float(number)
            except ValueError:
                raise click.BadParameter(f"{pair!r} is not NAME:NUMBER", ctx, param) from None
        return numbers

    return read


def texts(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read KEY=VALUE pairs."""
    for pair in values:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", ctx, param)
    return {key.strip(): value for key, _, value in (pair.partition("=") for pair in values)}


def json_object(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        content = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"it is not JSON: {error}", ctx, param) from None
    if not isinstance(content, dict):
        raise click.BadParameter("it is not a JSON object", ctx, param)
    return content


def number_list(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, ...]:
    """Read numbers with commas between them."""
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers", ctx, param) from None


def flag(
    name: str, kind: Any, default: Any, text: str, *, field: str | None = None, **settings: Any
) -> Decorator:
    """Make an option; `field` names its value where the unit is not part of the flag."""
    names = (name,) if field is None else (name, field)
    return click.option(*names, type=kind, default=default, help=text, **settings)


def switch(name: str, text: str) -> Decorator:
    """Make an option that has no value."""
    return click.option(name, is_flag=True, help=text)


def one_of(values: object) -> click.Choice[str]:
    """Return the type of an option whose values are those of a `Literal`."""
    return click.Choice(get_args(values))


PERCENTILES = flag(
    "--metric-percentiles",
    str,
    "50,90,99",
    "Percentiles of latencies.",
    metavar="LIST",
    callback=number_list,
)
