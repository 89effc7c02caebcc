"""`evenflow pull`: fetch a model now, so that later starts need no network."""

from __future__ import annotations

import click

from evenflow.cli.loading import transfer_bar
from evenflow.cli.options import config_options
from evenflow.config import Loaded, PathsConfig


@click.command()
@click.argument("name")
@config_options(PathsConfig)
def pull(loaded: Loaded, name: str) -> None:
    """Fetch the model NAME and print where it lies.

    NAME is a short name (smollm2, gemma3-270m), or a Hugging Face id (org/model, or
    org/model:FILE.gguf for one file).
    """
    from evenflow.models.sources import resolve

    with transfer_bar() as report:
        files = resolve(name, cache_dir=loaded.config.paths.cache, progress=report)
    click.echo(str(files.path))
