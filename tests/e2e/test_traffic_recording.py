"""A server records what it is asked, and what it recorded can be looked at, simulated and sent."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from evenflow.workloads.traces import read_trace
from support.served_model import COMMAND
from support.server_process import (
    ADMIN,
    COMPLETIONS,
    ServerProcess,
    Stream,
    generation,
    get,
    post,
    running,
)

pytestmark = pytest.mark.slow

ADMIN_KEY = ADMIN["Authorization"].removeprefix("Bearer ")
LONG = list(range(5, 25)) * 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("recorded"), "--admin-api-key", ADMIN_KEY) as server:
        yield server


@pytest.fixture(scope="module")
def recorded(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of requests of two tenants, recorded by the command line and ended by Ctrl-C."""
    path = tmp_path_factory.mktemp("trace") / "now.jsonl"
    with recording(server, path) as process:
        for number in range(6):
            body = generation(3 + number, prompt=LONG, user="ab"[number % 2])
            assert post(server.address, COMPLETIONS, body).status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    return path


def recording(server: ServerProcess, path: Path) -> subprocess.Popen[str]:
    """Begin to record."""
    where = ["--url", f"http://{server.address}", "--api-key", ADMIN_KEY, "-o", str(path)]
    process = subprocess.Popen(
        [COMMAND, "trace", "record", *where], stderr=subprocess.PIPE, text=True
    )
    stderr: IO[str] | None = process.stderr
    assert stderr is not None
    assert "recording" in stderr.readline()
    return process


def evenflow(*arguments: object) -> str:
    """Run a command to its end and return what it prints."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recorded_traffic_reads_as_a_trace(recorded: Path) -> None:
    requests, is_timed = read_trace(recorded)
    assert is_timed
    assert [request.num_output_tokens for request in requests] == [3, 4, 5, 6, 7, 8]
    assert {request.num_prompt_tokens for request in requests} == {len(LONG)}
    assert {request.tenant for request in requests} == {"a", "b"}
    assert len({request.segments for request in requests}) == 1
    assert "prompt" not in recorded.read_text(encoding="utf-8")


def test_recorded_traffic_can_be_described(recorded: Path) -> None:
    figures = json.loads(evenflow("trace", "describe", "--json", recorded))
    assert (figures["requests"], figures["tenants"]) == (6, 2)
    assert figures["prompt_tokens"]["mean"] == len(LONG)
    assert figures["prefix_hit_ratio"] == pytest.approx(5 / 6)


def test_recorded_traffic_can_be_simulated(recorded: Path) -> None:
    shown = evenflow("simulate", recorded, "--model", "llama-3-8b", "--device", "a100")
    assert re.search(r"Successful requests .* 6 ", shown)


def test_recorded_traffic_can_be_sent_again(
    server: ServerProcess, recorded: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.jsonl"
    what = ["--dataset-name", "trace", "--dataset-path", recorded]
    with recording(server, again) as process:
        evenflow("bench", "serve", "--base-url", f"http://{server.address}", *what)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert len(read_trace(again)[0]) >= 6


def test_server_records_to_a_file_what_it_could_not_finish(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    flags = ("--record-trace", str(path), "--record-trace-prompts", "--shutdown-timeout", "0")
    with running(tmp_path, *flags, "--admin-api-key", ADMIN_KEY) as server:
        body = generation(2, prompt=LONG)
        assert post(server.address, COMPLETIONS, body).status == 200
        listener = threading.Thread(target=get, args=(server.address, "/admin/trace"), kwargs=ADMIN)
        listener.start()
        stream = Stream(server.address, generation(400))
        stream.read(3)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        listener.join(60)
        assert not listener.is_alive(), "listening ends with the server"
    [first, second], _ = read_trace(path)
    assert first.prompt == tuple(LONG)
    assert 3 <= second.num_output_tokens < 400
