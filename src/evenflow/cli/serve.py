"""`evenflow serve`: the HTTP server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from evenflow.cli.loading import transfer_bar
from evenflow.cli.options import config_options
from evenflow.config import (
    CacheConfig,
    ExecutionConfig,
    Loaded,
    ModelConfig,
    PathsConfig,
    SchedulerConfig,
    ServerConfig,
)
from evenflow.core.errors import ConfigError

if TYPE_CHECKING:
    from evenflow.server.serving import Serving


@click.command()
@config_options(
    ModelConfig,
    ServerConfig,
    CacheConfig,
    SchedulerConfig,
    ExecutionConfig,
    PathsConfig,
    positional=("model",),
)
def serve(loaded: Loaded) -> None:
    """Serve MODEL over HTTP: OpenAI's and Anthropic's APIs, metrics, and a dashboard at /ui.

    SIGTERM or Ctrl-C stops it: no new requests are taken, and those that run get
    --shutdown-timeout seconds to finish.
    """
    try:
        from evenflow.server.run import run_server
    except ImportError as error:
        raise ConfigError(
            "the server's libraries are not installed",
            why=str(error),
            fix="Install them with `pip install 'evenflow[server]'`",
        ) from error
    with transfer_bar() as report:
        run_server(loaded.config, on_ready=_announce, progress=report)


def _announce(url: str, serving: Serving) -> None:
    config = serving.config.server
    lines = [
        f"{serving.name} is served at {url} (OpenAI's API under {url}/v1, dashboard at {url}/ui)",
        serving.model.info.kv_description,
    ]
    if not (len(serving.keys) or config.api_key):
        reach = "this machine only" if not config.allow_unauthenticated else "everybody"
        lines.append(f"No API keys are set: {reach} can use it (see --api-key and --keys-file)")
    for line in lines:
        click.echo(line, err=True)
