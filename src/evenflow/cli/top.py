"""`evenflow top`: what a running server is doing, in the terminal."""

from __future__ import annotations

import time

import click
import httpx
from rich.console import Console
from rich.live import Live

from evenflow.cli.top_view import State, Unreachable, render
from evenflow.core.errors import EvenflowError

REFRESH_S = 0.5
TIMEOUT_S = 2.0


class ServerUnreachableError(EvenflowError):
    """No answer came from the server that was asked."""

    code = "server_unreachable"


@click.command()
@click.option(
    "--url", default="http://127.0.0.1:8000", show_default=True, help="Where the server listens."
)
@click.option("--api-key", envvar="EVENFLOW_API_KEY", help="Sent as a bearer token.")
@click.option("--once", is_flag=True, help="Print the state once, as plain text, and leave.")
def top(url: str, api_key: str | None, once: bool) -> None:
    """Show tenants, memory, latencies and the oldest requests of a running server.

    Refreshed twice a second until Ctrl-C. If the server goes away, its last state stays on the
    screen until it is back.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
        if once:
            _print_once(client)
        else:
            _watch(client)


def _print_once(client: httpx.Client) -> None:
    try:
        state = _fetch(client)
    except httpx.HTTPError as error:
        raise ServerUnreachableError(
            f"no state from {client.base_url}",
            why=str(error),
            fix="Start it with `evenflow serve`, or name another one with --url",
        ) from error
    Console(force_terminal=False, no_color=True, highlight=False).print(render(state))


def _watch(client: httpx.Client) -> None:
    state: State | None = None
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            trouble = None
            try:
                state = _fetch(client)
            except httpx.HTTPError as error:
                trouble = Unreachable(str(client.base_url), str(error))
            live.update(render(state, trouble), refresh=True)
            time.sleep(REFRESH_S)


def _fetch(client: httpx.Client) -> State:
    """Return `/ui/state`.

    Raises:
        httpx.HTTPError: the server cannot be reached, or refuses, or is no evenflow.
    """
    response = client.get("/ui/state")
    response.raise_for_status()
    try:
        state = response.json()
    except ValueError:
        state = None
    if not isinstance(state, dict) or "live" not in state:
        raise httpx.DecodingError("that is no evenflow server", request=response.request)
    return state
