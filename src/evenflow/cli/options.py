"""Command-line flags made from the settings, so that a setting is written down once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from evenflow.config import Area, LoggingConfig, Option, load_config, options_of
from evenflow.engine.logs import configure_logging

Command = Callable[..., None]
Decorator = Callable[[Command], Command]


def config_options(*areas: type[Area], positional: tuple[str, ...] = ()) -> Decorator:
    """Give a command the flags of `areas` and --config, and hand it what they load as `Loaded`.

    The flags of the log are always there, and it is set up before the command runs.

    Args:
        areas: whose settings become flags. The others still come from file and environment.
        positional: settings that are arguments (`evenflow chat MODEL`) instead of flags.
    """
    areas = areas if LoggingConfig in areas else (*areas, LoggingConfig)
    options = options_of(*areas)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(*args: Any, config_file: Path | None, **values: Any) -> None:
            given = {option.name: values.pop(option.name) for option in options}
            flags = {name: value for name, value in given.items() if value is not None}
            loaded = load_config(flags, file=config_file)
            configure_logging(loaded.config.logging)
            command(loaded, *args, **values)

        decorated: Command = run
        for option in reversed(options):
            decorator = _argument(option) if option.name in positional else _flag(option)
            decorated = decorator(decorated)
        return _config_file(decorated)

    return decorate


_config_file = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML or YAML file with settings; without it, the file that EVENFLOW_CONFIG names.",
)


def _flag(option: Option) -> Decorator:
    """Make a flag. Values other than choices stay text: the loader reads and checks all layers."""
    name = f"{option.flag}/--no-{option.flag[2:]}" if option.is_bool else option.flag
    kind = click.Choice(option.choices) if option.choices else None
    return click.option(
        name,
        option.name,
        type=bool if option.is_bool else kind,
        default=None,
        metavar=None if option.choices or option.is_bool else option.kind,
        help=f"{option.description}  [default: {option.default}]",
    )


def _argument(option: Option) -> Decorator:
    return click.argument(option.name, required=False)
