"""Writes the parts of the docs that the code already says: option tables and `--help` texts.

python docs/generate.py            rewrite what lies between the markers
python docs/generate.py --check    change nothing; fail if something is stale
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from evenflow.cli import main
from evenflow.config import AREAS, options_of

DOCS = Path(__file__).parent
HELP_WIDTH = 88


def option_tables() -> str:
    """Return one table per area, in Markdown."""
    parts = []
    for area in AREAS:
        parts.append(f"### `{area.table}`\n\n{' '.join((area.__doc__ or '').split())}\n")
        parts.append("| flag | variable | default | values | meaning |\n|---|---|---|---|---|")
        parts += [
            f"| `{option.flag}` | `{option.variable}` | {option.default} | {option.limits} "
            f"| {option.description} |"
            for option in options_of(area)
        ]
        parts.append("")
    return "\n".join(parts).rstrip()


def help_texts() -> str:
    """Return the `--help` of every command, in Markdown."""
    root = click.Context(
        main, info_name="evenflow", terminal_width=HELP_WIDTH, help_option_names=["-h", "--help"]
    )
    return "\n\n".join(
        f"## `{ctx.command_path}`\n\n```text\n{ctx.get_help()}\n```" for ctx in _walk(root)
    )


def _walk(ctx: click.Context) -> Iterator[click.Context]:
    """Yield the context of a command and of all commands below it."""
    yield ctx
    if not isinstance(ctx.command, click.Group):
        return
    for name in ctx.command.list_commands(ctx):
        command = ctx.command.get_command(ctx, name)
        if command is not None:
            yield from _walk(click.Context(command, info_name=name, parent=ctx))


def rewrite(text: str, name: str, content: str) -> str:
    """Return `text` with `content` between the markers of `name`."""
    begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"The markers of {name} are missing.")
    return pattern.sub(lambda _: f"{begin}\n\n{content}\n\n{end}", text)


def generate(*, check: bool) -> int:
    """Bring the docs up to date, or only say whether they are. Return the exit status."""
    status = 0
    for file, name, content in (
        ("configuration.md", "options", option_tables()),
        ("cli.md", "help", help_texts()),
    ):
        path = DOCS / file
        text = path.read_text(encoding="utf-8")
        fresh = rewrite(text, name, content)
        if fresh == text:
            continue
        if check:
            sys.stderr.write(f"docs/{file} is stale: run `python docs/generate.py`.\n")
            status = 1
        else:
            path.write_text(fresh, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(generate(check="--check" in sys.argv[1:]))
