"""A real Prometheus that scrapes one target with the shipped configuration."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
NUM_SCRAPES = 3
DEADLINE_S = 60.0


class Prometheus:
    """Asks a running Prometheus.

    Args:
        url: where it listens.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples that an expression has now."""
        answer = self.get("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def get(self, path: str) -> dict[str, Any]:
        """Return the answer to a GET; an error's body counts as one too."""
        try:
            with urllib.request.urlopen(self._url + path, timeout=5) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))

    def wait_for_scrapes(self) -> None:
        """Wait until the target was scraped a few times."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            try:
                series = self.query('count_over_time(up{job="evenflow"}[1m])')
            except OSError:
                series = []
            if series and float(series[0]["value"][1]) >= NUM_SCRAPES:
                return
            time.sleep(0.2)
        raise TimeoutError("Prometheus did not scrape the target")


@contextmanager
def prometheus(target: str, folder: Path, bearer_token: str | None = None) -> Iterator[Prometheus]:
    """Run Prometheus until the block is left.

    Args:
        target: host and port to scrape, once a second.
        folder: for its data.
        bearer_token: sent with every scrape.
    """
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    if bearer_token is not None:
        job["authorization"] = {"credentials": bearer_token}
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.copy(DEPLOY / "rules.yml", folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("w"),
    )
    try:
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(timeout=10)


def panel_queries() -> list[tuple[str, str]]:
    """Return (panel and letter, expression) of every query of the Grafana dashboard."""
    text = (DEPLOY / "grafana" / "evenflow.json").read_text(encoding="utf-8")
    return [
        (f"{panel['title']} {target['refId']}", _filled_in(target["expr"]))
        for panel in json.loads(text)["panels"]
        for target in panel.get("targets", ())
    ]


def _filled_in(expression: str) -> str:
    """Put values in the place of Grafana's variables."""
    for variable, value in {
        "$__rate_interval": "10s",
        "$instance": ".*",
        "$tenant": ".*",
    }.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression
