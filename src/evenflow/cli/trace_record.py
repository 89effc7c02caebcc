"""`evenflow trace record`: what a running server is asked, as a trace."""

from __future__ import annotations

import json
import math
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import httpx

from evenflow.cli.explain import RefusedError
from evenflow.cli.flags import NEW_FILE
from evenflow.cli.top import ServerUnreachableError
from evenflow.cli.trace_files import wrote
from evenflow.core.errors import EvenflowError
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces import write_trace
from evenflow.workloads.traces.schema import request_of

_SILENCE_S = 10.0
"""A server that works writes a line every second."""

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|)")


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float:
    """Read a duration; none is one without end."""
    if value is None:
        return math.inf
    parts = _DURATION.fullmatch(value)
    if parts is None:
        raise click.BadParameter(f"{value!r} is no duration such as 90s, 5m or 2h", ctx, param)
    return float(parts[1]) * _SECONDS[parts[2]]


@click.command()
@click.option(
    "--url", default="http://127.0.0.1:8000", show_default=True, help="Where the server listens."
)
@click.option("--api-key", envvar="EVENFLOW_API_KEY", help="An admin key of the server.")
@click.option(
    "--duration", "duration_s", callback=_seconds, help="90s, 5m or 2h; without, until Ctrl-C."
)
@click.option("-o", "--output", type=NEW_FILE, required=True, help="Ends in .jsonl or .jsonl.gz.")
def record(url: str, api_key: str | None, duration_s: float, output: Path) -> None:
    """Record the requests that a running server gets from now on.

    Each becomes a row when it has ended: time, tenant, lengths, and hashes of its prompt, but no
    text. Ctrl-C ends the recording and keeps it, as does the end of the server.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    recording = _Recording(url, headers, duration_s)
    with _interrupts(recording):
        wrote(output, write_trace(output, recording))
    if recording.trouble is not None:
        raise recording.trouble


class _Recording:
    """The requests that a server reports, until it is time to stop.

    Attributes:
        trouble: why the recording ended early.
    """

    def __init__(self, url: str, headers: dict[str, str], duration_s: float) -> None:
        self._url = url
        self._headers = headers
        self._duration_s = duration_s
        self._is_over = False
        self.trouble: EvenflowError | None = None

    def stop(self, *_: object) -> None:
        """End it at the next line, which comes within a second; good as a signal handler."""
        self._is_over = True

    def __iter__(self) -> Iterator[WorkloadRequest]:
        """Yield the requests as they end.

        Raises:
            ServerUnreachableError: there is no answer at all.
            RefusedError: the answer is an error.
        """
        has_begun = False
        try:
            path = f"{self._url.rstrip('/')}/admin/trace"
            with httpx.stream("GET", path, headers=self._headers, timeout=_SILENCE_S) as response:
                _check(response, self._url)
                has_begun = True
                yield from self._requests(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            lost = ServerUnreachableError(
                f"{'no more rows' if has_begun else 'no answer'} from {self._url}",
                why=str(error),
                fix="Start it with `evenflow serve`, or name another one with --url",
            )
            if not has_begun:
                raise lost from error
            self.trouble = lost

    def _requests(self, response: httpx.Response) -> Iterator[WorkloadRequest]:
        until_s = time.monotonic() + self._duration_s
        click.echo(f"recording {self._url}; Ctrl-C ends it", err=True)
        for line in response.iter_lines():
            row = json.loads(line) if line else {}
            if "error" in row:
                self.trouble = _refusal(row, "")
                return
            request = request_of(row) if row else None
            if request is not None:
                yield request
            if self._is_over or time.monotonic() >= until_s:
                return


@contextmanager
def _interrupts(recording: _Recording) -> Iterator[None]:
    """Have SIGINT and SIGTERM end the recording instead of the program."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, recording.stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _check(response: httpx.Response, url: str) -> None:
    """Check that it is a stream of rows.

    Raises:
        RefusedError: it is an error, or something else.
    """
    if response.headers.get("content-type", "").startswith("application/x-ndjson"):
        return
    try:
        body = json.loads(response.read())
    except ValueError:
        body = None
    raise _refusal(body, f"{url} answers with status {response.status_code}")


def _refusal(body: object, otherwise: str) -> RefusedError:
    """Return the error in a body, or one that says `otherwise`."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return RefusedError(otherwise, code="refused")
    return RefusedError(str(error.get("message")), code=str(error.get("code")))
