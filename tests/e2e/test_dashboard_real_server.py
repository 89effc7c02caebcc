"""The dashboard in a real browser, over a real server with a tiny model."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect
from prometheus_client.parser import text_string_to_metric_families

from support.dashboard_page import CHROMIUM, Dashboard, chromium, open_dashboard
from support.served_model import get, post, served

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

NUM_BLOCKS = 64
TENANTS = ("blue", "<b>green</b>")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("model")
    flags = ("--max-model-len", "256", "--num-blocks-override", str(NUM_BLOCKS))
    with served(folder, *flags) as running:
        yield running


@pytest.fixture(scope="module")
def dashboard(address: str) -> Iterator[Dashboard]:
    with chromium() as browser:
        dashboard = open_dashboard(browser, f"http://{address}")
        dashboard.wait_until_live()
        yield dashboard


def complete(address: str, number: int) -> None:
    """Send a completion of some length for one of the tenants."""
    prompt = f"{number} The quick brown fox jumps over the lazy dog"
    body = {"prompt": prompt, "max_tokens": 120, "ignore_eos": True}
    assert post(address, "/v1/completions", body | {"user": TENANTS[number % 2]}) == 200


def metric(address: str, name: str) -> float:
    """Return the sum of a metric over its labels."""
    families = text_string_to_metric_families(get(address, "/metrics").decode())
    samples = [sample for family in families for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


def test_page_equals_the_metrics_after_a_load(address: str, dashboard: Dashboard) -> None:
    clients = [threading.Thread(target=complete, args=(address, number)) for number in range(8)]
    for client in clients:
        client.start()
    dashboard.page.wait_for_selector("#request-rows tr")
    for client in clients:
        client.join()
    expect(dashboard.page.locator("#stat-finished")).to_have_text("8")
    dashboard.page.wait_for_timeout(2500)
    assert metric(address, "evenflow:request_success_total") == 8
    assert dashboard.keys("#tenant-rows") == sorted(TENANTS)
    assert dashboard.number("#stat-running") == metric(address, "evenflow:num_requests_running")
    assert dashboard.number("#stat-preemptions") == metric(
        address, "evenflow:num_preemptions_total"
    )
    kinds = ("free", "used", "reserved", "cached")
    assert sum(dashboard.number(f"#blocks-{kind}") for kind in kinds) == NUM_BLOCKS
    assert dashboard.problems == []


def test_dialog_explains_a_request_that_ended(address: str, dashboard: Dashboard) -> None:
    client = threading.Thread(target=complete, args=(address, 0))
    client.start()
    dashboard.page.locator("#request-rows tr button").first.click()
    client.join()
    dashboard.page.wait_for_selector("#timeline[open] #timeline-intervals tr")
    assert "decode" in dashboard.text("#timeline-totals")
    assert any(tenant in dashboard.text("#timeline-facts") for tenant in TENANTS)
    dashboard.page.keyboard.press("Escape")
    assert dashboard.problems == []
