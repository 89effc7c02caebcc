"""`evenflow explain`: where a request's time went, in the terminal."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click
import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evenflow.cli.top import TIMEOUT_S, ServerUnreachableError
from evenflow.core.errors import EvenflowError

# A glyph and a colour for each kind, so that the bar can be read without colours too.
_LOOKS = {
    "queued": ("░", "yellow"),
    "held": ("▒", "magenta"),
    "prefill": ("▆", "blue"),
    "decode": ("█", "green"),
    "preempted": ("x", "red"),
    "recompute": ("▓", "red"),
}
_UNKNOWN = ("?", "white")
_MAX_BAR_CELLS = 100


class RefusedError(EvenflowError):
    """The server's answer is an error."""

    def __init__(self, what: str, *, code: str) -> None:
        super().__init__(what)
        self.code = code


@click.command()
@click.argument("request_id")
@click.option(
    "--url", default="http://127.0.0.1:8000", show_default=True, help="Where the server listens."
)
@click.option("--api-key", envvar="EVENFLOW_API_KEY", help="Sent as a bearer token.")
@click.option("--json", "as_json", is_flag=True, help="Print the server's JSON instead.")
def explain(request_id: str, url: str, api_key: str | None, as_json: bool) -> None:
    """Tell where the time of a request went, and what would have shortened it.

    REQUEST_ID is the id of the completion, which the X-Request-Id header carries too. Completion
    2 of several is REQUEST_ID#1.
    """
    life = _fetch(request_id, url, {"Authorization": f"Bearer {api_key}"} if api_key else {})
    if as_json:
        click.echo(json.dumps(life, indent=2))
        return
    console = Console(highlight=False)
    head = f"{life['id']}  tenant {life['tenant']}  {life['status']}  {_words(life['latency_s'])}"
    console.print(head, markup=False)
    if life["intervals"]:
        console.print(_bar(life, min(console.width, _MAX_BAR_CELLS)))
        console.print(_table(life))
    console.print(life["summary"], markup=False)


def _fetch(request_id: str, url: str, headers: dict[str, str]) -> dict[str, Any]:
    """Return the body of the server's explanation.

    Raises:
        ServerUnreachableError: there is no answer.
        RefusedError: the answer is an error.
    """
    path = f"{url.rstrip('/')}/v1/requests/{quote(request_id, safe='')}/explain"
    try:
        response = httpx.get(path, headers=headers, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerUnreachableError(
            f"no answer from {url}",
            why=str(error),
            fix="Start it with `evenflow serve`, or name another one with --url",
        ) from error
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success and isinstance(body, dict) and "intervals" in body:
        return body
    error_body = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error_body, dict):
        error_body = {"message": f"{url} answers with status {response.status_code}"}
    raise RefusedError(str(error_body.get("message")), code=str(error_body.get("code", "refused")))


def _bar(life: dict[str, Any], num_cells: int) -> Text:
    """Draw a life to scale; a cell shows what went on in its middle."""
    intervals = iter(life["intervals"])
    interval = next(intervals)
    bar = Text()
    for cell in range(num_cells):
        middle_s = (cell + 0.5) / num_cells * life["latency_s"]
        while middle_s > interval["end_s"]:
            interval = next(intervals, interval | {"end_s": middle_s})
        bar.append(*_LOOKS.get(interval["kind"], _UNKNOWN))
    return bar


def _table(life: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "kind"):
        table.add_column(name)
    for name in ("at", "for", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("cause", overflow="fold")
    table.add_column("detail", overflow="fold")
    for interval in life["intervals"]:
        glyph, colour = _LOOKS.get(interval["kind"], _UNKNOWN)
        table.add_row(
            Text(glyph, colour),
            Text(interval["kind"], colour),
            _words(interval["start_s"]),
            _words(interval["duration_s"]),
            f"{interval['duration_s'] / life['latency_s']:.0%}",
            Text(interval["cause"]),
            Text(interval["detail"]),
        )
    return table


def _words(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
