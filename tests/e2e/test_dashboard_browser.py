"""The dashboard in a real browser, over a small invented workload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from support.dashboard_page import CHROMIUM, Dashboard, chromium, open_dashboard
from support.fake_dashboard_server import ANSWER, FakeServer, serving
from support.fake_workload import USED, FakeWorkload

PERIOD_S = 0.1
NUM_BLOCKS = 512
HOSTILE = "<img src=x onerror=alert(1)>"
WEIGHTS = {"search": 2.0, "assistant": 1.0, HOSTILE: 1.0}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def fake_server(api_key: str | None = None) -> FakeServer:
    workload = FakeWorkload(WEIGHTS, NUM_BLOCKS)
    for _ in range(30):
        workload.advance()
    return FakeServer(workload, api_key=api_key, period_s=PERIOD_S)


@pytest.fixture
def server() -> FakeServer:
    return fake_server()


@pytest.fixture
def url(server: FakeServer) -> Iterator[str]:
    with serving(server.app) as url:
        yield url


@pytest.fixture
def dashboard(browser: Browser, url: str) -> Iterator[Dashboard]:
    dashboard = open_dashboard(browser, url)
    dashboard.wait_until_live()
    dashboard.page.wait_for_selector("#request-rows tr")
    yield dashboard
    dashboard.page.close()


@pytest.fixture
def frozen(dashboard: Dashboard, server: FakeServer) -> Dashboard:
    """A page that shows what the workload has stopped at."""
    server.is_moving = False
    dashboard.page.wait_for_timeout(5000 * PERIOD_S)
    return dashboard


def get(dashboard: Dashboard, path: str) -> dict[str, Any]:
    return httpx.get(f"{dashboard.url}{path}").json()


def test_page_has_no_errors_and_stays_on_its_server_when_it_runs(frozen: Dashboard) -> None:
    assert frozen.problems == []
    assert frozen.hosts == {frozen.url.removeprefix("http://")}


def test_page_updates_by_itself(dashboard: Dashboard) -> None:
    rows = dashboard.page.locator("#request-rows")
    expect(rows).not_to_have_text(rows.text_content() or "")


def test_numbers_equal_the_state_when_nothing_moves(frozen: Dashboard) -> None:
    state = get(frozen, "/ui/state")
    expected = {
        "#stat-running": state["requests"]["running"],
        "#stat-waiting": state["requests"]["waiting"],
        "#stat-finished": state["requests"]["finished"],
        "#stat-preemptions": state["preemptions"],
        "#blocks-free": state["kv"]["free"],
        "#blocks-used": state["kv"]["used"],
        "#blocks-reserved": state["kv"]["reserved"],
        "#blocks-cached": state["kv"]["evictable"],
        "#blocks-pinned": state["kv"]["pinned"],
    }
    assert {selector: frozen.number(selector) for selector in expected} == expected
    assert frozen.text("#memory-tiers") == " · host 120 of 4,000 blocks · disk 3 of 90,000 blocks"
    swapped = state["switching"]["swapped"]
    assert frozen.text("#stat-preemptions ~ dd") == f"{swapped} off the device, 0 arriving"
    assert frozen.text("#jain") == f"{state['jain_index']:.3f}"


def test_tenant_rows_equal_the_state_when_nothing_moves(frozen: Dashboard) -> None:
    rows = frozen.page.locator("#tenant-rows tr").all()
    shown = {row.get_attribute("data-key"): row.locator("td").all_inner_texts()[:2] for row in rows}
    tenants = get(frozen, "/ui/state")["tenants"]
    assert shown == {t["id"]: [str(t["running"]), str(t["waiting"])] for t in tenants}


def used_run(dashboard: Dashboard) -> tuple[list[int], str, str]:
    """Return a used run of some length, its tenant and its request."""
    blocks = get(dashboard, "/ui/blocks")
    run = next(run for run in blocks["runs"] if run[2] == USED and run[1] >= 3)
    return run, blocks["tenants"][run[3]], blocks["requests"][run[4]]


def point_in_block(dashboard: Dashboard, block: int) -> dict[str, float]:
    """Return a point of the map inside a block, by the module that places blocks."""
    x, y = dashboard.page.evaluate(
        """async ([block, numBlocks]) => {
          const { fitGrid, rowTop } = await import("./block-grid.js");
          const box = document.getElementById("map-box");
          const grid = fitGrid(numBlocks, box.clientWidth - 40, box.clientHeight);
          const column = block % grid.columns;
          return [40 + column * grid.pitch, rowTop(grid, Math.floor(block / grid.columns))];
        }""",
        [block, NUM_BLOCKS],
    )
    return {"x": x + 4, "y": y + 6}


PIXEL_OF_MAP = """({ x, y }) => {
  const scale = window.devicePixelRatio;
  const context = document.getElementById("map").getContext("2d");
  return [...context.getImageData(x * scale, y * scale, 1, 1).data];
}"""

PIXEL_OF_BACKGROUND = """element => {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.fillStyle = getComputedStyle(element).backgroundColor;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
}"""


def test_block_map_paints_a_used_block_in_the_colour_of_its_tenant(frozen: Dashboard) -> None:
    run, tenant, _ = used_run(frozen)
    painted = frozen.page.evaluate(PIXEL_OF_MAP, point_in_block(frozen, run[0] + 1))
    swatch = frozen.page.locator(f'#tenant-rows tr[data-key="{tenant}"] .swatch')
    assert painted == swatch.evaluate(PIXEL_OF_BACKGROUND)


def test_block_map_names_range_and_request_when_pointed_at(frozen: Dashboard) -> None:
    run, tenant, request_id = used_run(frozen)
    frozen.page.locator("#map").hover(position=point_in_block(frozen, run[0] + 1))
    first, last = run[0], run[0] + run[1] - 1
    lines = [f"Blocks {first}\N{EN DASH}{last}", "in use", tenant, request_id]
    assert frozen.text("#map-tooltip").split("\n") == lines


def test_block_map_selects_the_request_when_clicked(frozen: Dashboard) -> None:
    run, _, request_id = used_run(frozen)
    frozen.page.locator("#map").click(position=point_in_block(frozen, run[0] + 1))
    assert frozen.text("#focus-name") == request_id
    assert frozen.keys("#request-rows") == [request_id]


def test_block_map_moves_from_run_to_run_when_arrow_keys_are_pressed(frozen: Dashboard) -> None:
    frozen.page.locator("#map").focus()
    frozen.page.keyboard.press("ArrowDown")
    frozen.page.keyboard.press("ArrowRight")
    start, length, *_ = get(frozen, "/ui/blocks")["runs"][1]
    assert f"Blocks {start}\N{EN DASH}{start + length - 1}" in frozen.text("#map-tooltip")


def test_tenant_button_filters_requests_when_pressed(dashboard: Dashboard) -> None:
    dashboard.page.locator('#tenant-rows tr[data-key="assistant"] button').click()
    names = set(dashboard.page.locator("#request-rows td .name").all_inner_texts())
    assert names == {"assistant"}


def test_request_dialog_shows_intervals_that_fill_the_bar(dashboard: Dashboard) -> None:
    dashboard.page.locator("#request-rows tr button").first.click()
    dashboard.page.wait_for_selector("#timeline[open] #timeline-intervals tr")
    widths = dashboard.page.locator("#timeline-bar .bar-part").evaluate_all(
        "parts => parts.map(part => part.getBoundingClientRect().width)"
    )
    bar = dashboard.page.locator("#timeline-bar").bounding_box()
    assert bar is not None
    assert sum(widths) == pytest.approx(bar["width"], abs=2)
    assert "all seats were taken" in dashboard.text("#timeline-intervals")


def test_charts_show_the_values_under_the_crosshair_of_any_of_them(frozen: Dashboard) -> None:
    charts = frozen.page.locator("#charts canvas")
    charts.first.hover(position={"x": 60, "y": 40})
    notes = frozen.page.locator(".chart-time").all_inner_texts()
    assert len(notes) == 4
    assert all(note.endswith("ago") for note in notes)


def ask(dashboard: Dashboard, text: str) -> None:
    """Send a message and return when the answer has begun."""
    dashboard.page.fill("#chat-input", text)
    dashboard.page.keyboard.press("Enter")
    expect(dashboard.page.locator(".assistant .message-text")).to_contain_text(ANSWER[0])


def test_chat_streams_and_tells_its_speed(dashboard: Dashboard) -> None:
    ask(dashboard, "Why does my request wait?")
    assert dashboard.page.locator("#chat-stop").is_visible()
    dashboard.page.wait_for_selector("#chat-send:visible")
    assert dashboard.text(".assistant .message-text").split() == 4 * ANSWER
    facts = dashboard.text(".assistant .message-facts")
    assert f"{4 * len(ANSWER)} tokens" in facts
    assert "first after" in facts


def test_chat_ends_the_request_when_stopped(dashboard: Dashboard, server: FakeServer) -> None:
    ask(dashboard, "Tell me everything")
    assert server.num_open_chats == 1
    dashboard.page.click("#chat-stop")
    dashboard.page.wait_for_selector("#chat-send:visible")
    assert "stopped" in dashboard.text(".assistant .message-facts")
    assert len(dashboard.text(".assistant .message-text").split()) < 4 * len(ANSWER)
    dashboard.page.wait_for_timeout(5000 * PERIOD_S)
    assert server.num_open_chats == 0


def test_hostile_tenant_name_is_shown_as_text(dashboard: Dashboard) -> None:
    assert HOSTILE in dashboard.text("#tenant-rows")
    assert dashboard.page.locator("main img").count() == 0
    assert dashboard.problems == []


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_scrolls_sideways(dashboard: Dashboard, width: int) -> None:
    dashboard.page.set_viewport_size({"width": width, "height": 900})
    boxes = dashboard.page.locator("html, main .scroll")
    widths = boxes.evaluate_all("boxes => boxes.map(box => [box.scrollWidth, box.clientWidth])")
    assert len(widths) == 3
    assert all(content <= box for content, box in widths)


def brightness(dashboard: Dashboard) -> float:
    """Return how bright the page's background is, from 0 to 1."""
    *rgb, _ = dashboard.page.locator("body").evaluate(PIXEL_OF_BACKGROUND)
    return sum(rgb) / 765


def test_theme_follows_the_system_until_one_is_chosen(dashboard: Dashboard) -> None:
    dashboard.page.emulate_media(color_scheme="light")
    assert brightness(dashboard) > 0.9
    dashboard.page.emulate_media(color_scheme="dark")
    assert brightness(dashboard) < 0.1
    dashboard.page.emulate_media(color_scheme="light")
    dashboard.page.click("#theme")
    assert brightness(dashboard) < 0.1
    dashboard.page.reload()
    assert brightness(dashboard) < 0.1


def test_lost_connection_is_shown_and_comes_back(dashboard: Dashboard, server: FakeServer) -> None:
    server.is_silent = True
    dashboard.page.wait_for_selector("[data-connection=lost]")
    assert "Connection lost" in dashboard.text("#connection-text")
    server.is_silent = False
    dashboard.wait_until_live()
    assert dashboard.text("#connection-text") == "Live"


def test_key_is_asked_for_and_kept_in_the_tab_when_the_server_wants_one(browser: Browser) -> None:
    with serving(fake_server(api_key="sk-right").app) as url:
        dashboard = open_dashboard(browser, url)
        dashboard.page.wait_for_selector("#key-dialog[open]")
        dashboard.page.fill("#key-input", "sk-wrong")
        dashboard.page.keyboard.press("Enter")
        dashboard.page.wait_for_selector("[data-connection=locked] #key-dialog[open]")
        dashboard.page.fill("#key-input", "sk-right")
        dashboard.page.keyboard.press("Enter")
        dashboard.wait_until_live()
        assert "sk-right" not in dashboard.page.evaluate("() => JSON.stringify(localStorage)")
        dashboard.page.close()
