"""`evenflow trace record` against a small HTTP server that sends rows."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner, Result

from evenflow.cli import main
from evenflow.workloads.traces import read_trace

ROWS = [
    {"timestamp": 10 * number, "input_length": 5, "output_length": number, "hash_ids": [number]}
    for number in (2, 1)
]
REFUSAL = {"error": {"message": "not for you", "code": "permission_denied"}}
TOO_SLOW = {"error": {"message": "the recording ends here", "code": "listener_too_slow"}}


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" if row else b"\n" for row in rows)


class RowHandler(BaseHTTPRequestHandler):
    """Sends `body` to who has the key; then blank lines, for a server `goes_on`."""

    body: ClassVar[bytes] = b""
    kind: ClassVar[str] = "application/x-ndjson"
    length: ClassVar[int | None] = None
    goes_on: ClassVar[bool] = False

    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == "Bearer adm"
        self.send_response(200 if allowed and self.path == "/admin/trace" else 403)
        self.send_header("Content-Type", self.kind if allowed else "application/json")
        if self.length is not None:
            self.send_header("Content-Length", str(self.length))
        self.end_headers()
        self.wfile.write(self.body if allowed else lines(REFUSAL))
        try:
            while allowed and self.goes_on:
                self.wfile.write(b"\n")
                time.sleep(0.02)
        except OSError:
            return

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[RowHandler]]:
    """A server of its own settings; its port is in `Handler.url`."""

    class Handler(RowHandler):
        body = lines(None, *ROWS, None)
        url: ClassVar[str]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    Handler.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("EVENFLOW_API_KEY", "adm")
    yield Handler
    server.shutdown()
    server.server_close()


def record(url: str, output: Path, *flags: str) -> Result:
    command = ["trace", "record", "--url", url, "-o", str(output), *flags]
    return CliRunner().invoke(main, command)


def test_record_writes_what_the_server_sends_until_it_ends(
    handler: type[RowHandler], tmp_path: Path
) -> None:
    result = record(handler.url, tmp_path / "t.jsonl")
    assert result.exit_code == 0, result.output
    assert "wrote 2 requests" in result.output
    requests, is_timed = read_trace(tmp_path / "t.jsonl")
    assert is_timed
    assert [request.num_output_tokens for request in requests] == [1, 2]
    assert all(request.segments for request in requests)


def test_record_ends_when_its_time_is_over(handler: type[RowHandler], tmp_path: Path) -> None:
    handler.goes_on = True
    result = record(handler.url, tmp_path / "t.jsonl.gz", "--duration", "0.1s")
    assert result.exit_code == 0, result.output
    assert len(read_trace(tmp_path / "t.jsonl.gz")[0]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_record_keeps_what_came_when_it_is_interrupted(
    handler: type[RowHandler], tmp_path: Path, number: signal.Signals
) -> None:
    handler.goes_on = True
    before = signal.getsignal(number)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    result = record(handler.url, tmp_path / "t.jsonl")
    timer.join()
    assert result.exit_code == 0, result.output
    assert len(read_trace(tmp_path / "t.jsonl")[0]) == 2
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("body", "length", "code"),
    [
        (lines(*ROWS, TOO_SLOW), None, "listener_too_slow"),
        (lines(*ROWS), 999, "server_unreachable"),
    ],
)
def test_record_keeps_what_came_when_the_server_breaks_off(
    handler: type[RowHandler], tmp_path: Path, body: bytes, length: int | None, code: str
) -> None:
    handler.body, handler.length = body, length
    result = record(handler.url, tmp_path / "t.jsonl")
    assert result.exit_code == 1
    assert code in result.output
    assert len(read_trace(tmp_path / "t.jsonl")[0]) == 2


def test_record_writes_no_file_when_it_is_refused(
    handler: type[RowHandler], tmp_path: Path
) -> None:
    result = record(handler.url, tmp_path / "t.jsonl", "--api-key", "wrong")
    assert result.exit_code == 1
    assert "not for you" in result.output
    assert list(tmp_path.iterdir()) == []


def test_record_says_what_is_wrong_when_the_server_is_something_else(
    handler: type[RowHandler], tmp_path: Path
) -> None:
    handler.kind = "text/html"
    result = record(handler.url, tmp_path / "t.jsonl")
    assert result.exit_code == 1
    assert "status 200" in result.output


def test_record_says_what_is_wrong_when_nobody_answers(tmp_path: Path) -> None:
    result = record("http://127.0.0.1:9", tmp_path / "t.jsonl")
    assert result.exit_code == 1
    assert "server_unreachable" in result.output


@pytest.mark.parametrize("text", ["soon", "-1s", "5 m", "1d"])
def test_record_refuses_what_is_no_duration(tmp_path: Path, text: str) -> None:
    result = record("http://127.0.0.1:9", tmp_path / "t.jsonl", f"--duration={text}")
    assert result.exit_code == 2
    assert "no duration" in result.output
