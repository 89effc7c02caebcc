"""A server that tests may attack, signal and kill, and a client that hides nothing.

The model is the tiny one of `served_model`, with a chat template.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from support.served_model import COMMAND, write_model

DEADLINE_S = 120.0
ADMIN = {"Authorization": "Bearer adm-1"}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(slots=True, frozen=True)
class Answer:
    """A response as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, after checking that it has OpenAI's form and a bounded size."""
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str)
        assert isinstance(error["code"], str)
        assert len(self.body) < 4000
        return dict(error)


def ask(
    address: str,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = DEADLINE_S,
) -> Answer:
    """Send a request; bytes are sent as they are, everything else as JSON."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request(method, path, raw, dict(headers or {}))
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    finally:
        connection.close()


def post(address: str, path: str, body: object, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(address, "POST", path, body, named)


def get(address: str, path: str, **headers: str) -> Answer:
    return ask(address, "GET", path, None, headers)


def admin(address: str, verb: str, body: object = None, **headers: str) -> Any:
    """Call an admin endpoint and return its answer."""
    answer = ask(address, "POST", f"/admin/{verb}", body, headers or ADMIN)
    assert answer.status == 200, answer.body
    return answer.json()


def generation(num_tokens: int, **fields: Any) -> dict[str, Any]:
    """Return the body of a completion of exactly so many tokens, always the same."""
    fixed = {"max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
    return {"prompt": "the quick brown fox", **fixed, **fields}


class Stream:
    """A streamed completion, read by hand.

    Args:
        address: the server's.
        body: of a completion; `stream` is added.
        headers: further headers.
    """

    def __init__(
        self, address: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
        raw = json.dumps({**body, "stream": True}).encode()
        self._connection.request("POST", COMPLETIONS, raw, dict(headers or {}))
        self._response = self._connection.getresponse()
        assert self._response.status == 200, self._response.read()
        self.events: list[dict[str, Any]] = []
        self.is_done = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._response:
            if line.startswith(b"data: [DONE]"):
                self.is_done = True
            elif line.startswith(b"data: "):
                self.events.append(json.loads(line[6:]))
                yield self.events[-1]

    def read(self, num_events: int) -> None:
        """Read until so many events are there."""
        for _ in self:
            if len(self.events) >= num_events:
                return

    def read_all(self) -> str:
        """Read to the end and return the text."""
        for _ in self:
            pass
        return self.text

    @property
    def text(self) -> str:
        choices = (event["choices"] for event in self.events if event.get("choices"))
        return "".join(choice[0]["text"] for choice in choices)

    @property
    def error(self) -> dict[str, Any] | None:
        return next((event["error"] for event in self.events if "error" in event), None)

    def close(self) -> None:
        self._connection.close()


class ServerProcess:
    """A server in a process of its own.

    Args:
        folder: for its model, files and log.
        flags: further flags.
        port: taken from the system if not given.
        model: to serve instead of the tiny one.
        environment: further variables.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        port: int | None = None,
        model: Path | None = None,
        **environment: str,
    ) -> None:
        self.log_path = folder / "log"
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        model = model or write_chat_model(folder)
        own = ["--port", str(self.port), "--data-dir", str(folder / "data")]
        small = ["--kv-cache-memory", "64MiB", "--load-format", "dummy", "--num-threads", "1"]
        self.process = subprocess.Popen(
            [COMMAND, "serve", str(model), *own, *small, *flags],
            stdout=subprocess.DEVNULL,
            stderr=self.log_path.open("a"),
            env={**os.environ, **environment},
        )

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    @property
    def engine(self) -> psutil.Process:
        """The engine process, once it is there."""

        def engines() -> list[psutil.Process]:
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

        wait_for(engines, "the engine process is there")
        return engines()[0]

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.log
            return self.answers("/ready")

        wait_for(is_ready, "the server is ready")

    def answers(self, path: str) -> bool:
        """Whether a page can be had."""
        try:
            return ask(self.address, "GET", path, timeout_s=5).status == 200
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait until the process has ended; return its exit code."""
        return self.process.wait(timeout=DEADLINE_S)

    def stop(self) -> None:
        """End it, whatever it is doing."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise


def write_chat_model(folder: Path) -> Path:
    """Write the tiny model with a chat template."""
    template = json.dumps({"chat_template": TEMPLATE})
    (folder / "tokenizer_config.json").write_text(template, encoding="utf-8")
    return write_model(folder)


@contextmanager
def running(folder: Path, *flags: str, **environment: str) -> Iterator[ServerProcess]:
    """Run a server until the block is left; it is ready when the block begins."""
    server = ServerProcess(folder, *flags, **environment)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


class Bystander:
    """Somebody who uses a server properly all the time, and must not notice the others.

    One stream after the other is compared with the first one; `/health` is asked all along.

    Args:
        address: the server's.
        headers: sent with each request.
    """

    def __init__(self, address: str, headers: Mapping[str, str] | None = None) -> None:
        self._address = address
        self._headers = dict(headers or {})
        self._stop = threading.Event()
        self._expected = Stream(address, generation(300), headers).read_all()
        self.num_streams = 0
        self.health_s: list[float] = []
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._until_stopped, args=(work,))
            for work in (self._stream, self._ask)
        ]

    def __enter__(self) -> Bystander:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _until_stopped(self, work: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                work()
            except (AssertionError, OSError, ValueError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
            time.sleep(0.02)

    def _stream(self) -> None:
        text = Stream(self._address, generation(300), self._headers).read_all()
        self.num_streams += 1
        if text != self._expected:
            self.failures.append(f"another text: {text!r}")

    def _ask(self) -> None:
        started_s = time.monotonic()
        if get(self._address, "/health").status != 200:
            self.failures.append("not healthy")
        self.health_s.append(time.monotonic() - started_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}"
        time.sleep(0.02)
