"""`evenflow top` against a small HTTP server that sends a state."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner
from rich.console import Console

from evenflow.cli import main
from evenflow.cli.top_view import Unreachable, render
from evenflow.server.live_state import live_state
from evenflow.server.metrics import ServerMetrics
from support.metrics_traffic import Traffic

REQUEST = {
    "id": "chatcmpl-1",
    "tenant": "[red]tenant\x1b[2J",
    "status": "waiting",
    "num_prompt_tokens": 40,
    "num_output_tokens": 0,
    "num_computed_tokens": 16,
    "age_s": 75.0,
    "priority": 0,
    "num_blocks": 0,
    "waiting_for": "needs 3 blocks, 2 available",
}


def a_state() -> dict[str, Any]:
    metrics = ServerMetrics(started_s=100.0, version="1.0", config={})
    traffic = Traffic(metrics)
    for quarter in range(1, 9):
        traffic.tick(100.0 + quarter / 4)
    return live_state(
        metrics,
        now_s=102.0,
        model="smollm2",
        version="1.0",
        is_draining=True,
        block_size=16,
        live=[REQUEST],
        ended=[],
    )


def text_of(state: dict[str, Any] | None, trouble: Unreachable | None = None) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(render(state, trouble))
    return capture.get()


class StateHandler(BaseHTTPRequestHandler):
    """Sends a state to who has the key."""

    state: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == "Bearer secret"
        self.send_response(200 if allowed and self.path == "/ui/state" else 401)
        self.end_headers()
        self.wfile.write(self.state)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    StateHandler.state = json.dumps(a_state()).encode()
    server = ThreadingHTTPServer(("127.0.0.1", 0), StateHandler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_top_prints_the_state_once_when_asked(url: str) -> None:
    result = CliRunner().invoke(main, ["top", "--once", "--url", url, "--api-key", "secret"])
    assert result.exit_code == 0, result.output
    for expected in ("smollm2", "draining", "4 running", "TTFT", "blue", "green", "chatcmpl-1"):
        assert expected in result.output
    assert "\x1b" not in result.output


def test_top_says_what_is_wrong_when_the_key_is_refused(url: str) -> None:
    result = CliRunner().invoke(main, ["top", "--once", "--url", url])
    assert result.exit_code == 1
    assert "401" in result.output


def test_top_says_what_is_wrong_when_nobody_answers() -> None:
    result = CliRunner().invoke(main, ["top", "--once", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "server_unreachable" in result.output


def test_top_says_what_is_wrong_when_the_server_is_something_else(url: str) -> None:
    StateHandler.state = b'{"hello": 1}'
    result = CliRunner().invoke(main, ["top", "--once", "--url", url, "--api-key", "secret"])
    assert result.exit_code == 1
    assert "no evenflow server" in result.output


def test_top_goes_on_when_the_server_goes_away_and_comes_back(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([b"", StateHandler.state])
    screens = []

    def show(state: dict[str, Any] | None, trouble: Unreachable | None) -> str:
        screens.append((state is not None, trouble is not None))
        return ""

    def next_answer(_: float) -> None:
        answer = next(answers, None)
        if answer is None:
            raise KeyboardInterrupt
        StateHandler.state = answer

    monkeypatch.setattr("evenflow.cli.top.time.sleep", next_answer)
    monkeypatch.setattr("evenflow.cli.top.render", show)
    result = CliRunner().invoke(main, ["top", "--url", url, "--api-key", "secret"])
    assert result.exit_code == 130
    assert screens == [(True, False), (True, True), (True, False)]


def test_top_view_shows_what_a_request_waits_for_when_it_waits() -> None:
    text = text_of(a_state())
    assert "waiting: needs 3 blocks, 2 available" in text
    assert "1 min 15 s" in text


def test_top_view_shows_names_as_they_are_when_they_look_like_markup() -> None:
    text = text_of(a_state())
    assert "[red]tenant" in text
    assert "\x1b" not in text


def test_top_view_keeps_the_last_state_when_the_server_goes_away() -> None:
    text = text_of(a_state(), Unreachable("http://there", "connection refused"))
    assert "http://there does not answer: connection refused" in text
    assert "smollm2" in text


def test_top_view_says_so_when_there_is_no_state_yet() -> None:
    assert "does not answer" in text_of(None, Unreachable("http://there", "refused"))
