"""The shipped Prometheus and Grafana files, loaded by the real Prometheus."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from evenflow.server.metrics import CONTENT_TYPE, ServerMetrics
from support.metrics_traffic import Traffic
from support.prometheus_server import DEPLOY, Prometheus, panel_queries, prometheus

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


class MetricsServer(ThreadingHTTPServer):
    """Serves `/metrics`, with something of everything happening all the time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.metrics = ServerMetrics(
            started_s=time.monotonic(),
            version="1.0",
            config={"model": "smollm2"},
            engine_pid=os.getpid,
        )
        self.lock = threading.Lock()
        self._closing = threading.Event()

    def live(self) -> None:
        traffic = Traffic(self.metrics)
        while not self._closing.wait(0.1):
            with self.lock:
                traffic.tick(time.monotonic())

    def close(self) -> None:
        self._closing.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer

    def do_GET(self) -> None:
        with self.server.lock:
            body = self.server.metrics.render()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def scraping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a busy server a few times."""
    server = MetricsServer()
    for work in (server.serve_forever, server.live):
        threading.Thread(target=work, daemon=True).start()
    target = f"127.0.0.1:{server.server_port}"
    with prometheus(target, tmp_path_factory.mktemp("prometheus")) as running:
        running.wait_for_scrapes()
        yield running
    server.close()


@pytest.mark.parametrize(("panel", "expression"), panel_queries())
def test_panel_has_data_when_the_server_is_busy(
    scraping: Prometheus, panel: str, expression: str
) -> None:
    values = [float(series["value"][1]) for series in scraping.query(expression)]
    assert values, f"{panel}: {expression} has no data"
    assert all(value == value for value in values), f"{panel}: {expression} is not a number"


def test_rules_are_healthy_when_prometheus_evaluates_them(scraping: Prometheus) -> None:
    groups = scraping.get("/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 10
    assert {rule["health"] for rule in rules} == {"ok"}
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert [name for name in recorded if not scraping.query(name)] == []


@pytest.mark.parametrize(("kind", "file"), [("config", "prometheus.yml"), ("rules", "rules.yml")])
def test_promtool_accepts_the_files_when_it_checks_them(kind: str, file: str) -> None:
    check = ["promtool", "check", kind, str(DEPLOY / file)]
    result = subprocess.run(check, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_alerts_fire_when_and_only_when_they_should() -> None:
    check = ["promtool", "test", "rules", str(DEPLOY / "rules_test.yml")]
    result = subprocess.run(check, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
