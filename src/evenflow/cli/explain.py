"""`evenflow explain`: where a request's time went, in the terminal."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click
import httpx

from evenflow.cli.explain_view import show_life
from evenflow.cli.top import TIMEOUT_S, ServerUnreachableError
from evenflow.core.errors import EvenflowError


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
    show_life(life)


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
