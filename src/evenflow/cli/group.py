"""A group of commands that imports a command when it is used, and ends every failure politely."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import click

from evenflow.core.errors import ConfigError, EvenflowError, InvalidRequestError

logger = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A click group whose commands are named by a table.

    Args:
        verbs: by name of the command, `module:function` and a one-line help text.
        settings: click's own arguments of a group.
    """

    def __init__(self, *, verbs: Mapping[str, tuple[str, str]], **settings: Any) -> None:
        super().__init__(**settings)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table's order."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return the command."""
        if cmd_name not in self._verbs:
            return None
        module_name, _, function = self._verbs[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module_name), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the table's help texts, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._verbs.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, and turn what may go wrong into a message and an exit status."""
        try:
            return super().invoke(ctx)
        except EvenflowError as error:
            logger.debug("the command failed", exc_info=True)
            click.echo(describe(error), err=True)
            wrong_input = isinstance(error, ConfigError | InvalidRequestError)
            ctx.exit(EXIT_WRONG_INPUT if wrong_input else EXIT_FAILED)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


def describe(error: EvenflowError) -> str:
    """Return an error as the lines a person reads: what happened, why, and what to change."""
    lines = [f"Error [{error.code}]: {error.what}", error.why, error.fix]
    return "\n  ".join(line[0].upper() + line[1:] for line in lines if line)
