"""The dashboard's queries, `/ui/state` and `evenflow top` on a real server under load."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.prometheus_server import panel_queries, prometheus
from support.served_model import COMMAND, get, post, served

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]

DEADLINE_S = 90.0
NUM_CLIENTS = 12
# So little memory and so short a queue that requests are preempted and turned away.
TIGHT = (
    *("--max-model-len", "256", "--num-blocks-override", "16"),
    *("--max-num-seqs", "6", "--max-num-queued-reqs", "4"),
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    disk = tmp_path_factory.mktemp("disk")
    with served(tmp_path_factory.mktemp("model"), *TIGHT, "--kv-disk-path", str(disk)) as running:
        yield running


def keep_busy(address: str, is_over: Callable[[], bool], number: int) -> None:
    """Send one request after another for one of two tenants."""
    body = {
        "prompt": f"{number} The quick brown fox jumps over the lazy dog",
        "max_tokens": 80,
        "ignore_eos": True,
        "user": ("blue", "green")[number % 2],
    }
    headers = {"x-slo-ttft-ms": "1", "x-slo-tpot-ms": "60000"}
    while not is_over():
        if post(address, "/v1/completions", body, **headers) != 200:
            time.sleep(0.05)


def test_every_panel_has_data_when_a_real_server_is_busy(address: str, tmp_path: Path) -> None:
    over = threading.Event()
    clients = [
        threading.Thread(target=keep_busy, args=(address, over.is_set, number))
        for number in range(NUM_CLIENTS)
    ]
    for client in clients:
        client.start()
    missing = dict(panel_queries())
    try:
        with prometheus(address, tmp_path) as running:
            running.wait_for_scrapes()
            deadline_s = time.monotonic() + DEADLINE_S
            while missing and time.monotonic() < deadline_s:
                missing = {panel: q for panel, q in missing.items() if not running.query(q)}
                time.sleep(0.5)
    finally:
        over.set()
        for client in clients:
            client.join()
    assert missing == {}


def test_live_state_agrees_with_metrics_when_the_server_is_idle(address: str) -> None:
    assert post(address, "/v1/completions", {"prompt": "a", "max_tokens": 2}) == 200
    time.sleep(1.5)  # an idle engine sends a snapshot each second
    state = json.loads(get(address, "/ui/state"))
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(get(address, "/metrics").decode()):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    assert state["requests"]["running"] == sums["evenflow:num_requests_running"] == 0
    assert state["requests"]["finished"] == sums["evenflow:request_success_total"] > 0
    assert state["requests"]["rejected"] == sums.get("evenflow:admission_rejections_total", 0)
    assert state["kv"]["num_blocks"] == sums["evenflow:kv_blocks"] == 16
    assert state["preemptions"] == sums.get("evenflow:num_preemptions_total", 0)


def test_top_prints_a_real_servers_state_when_asked_once(address: str) -> None:
    command = [COMMAND, "top", "--once", "--url", f"http://{address}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "of 16 blocks" in result.stdout
