"""The dashboard in a real browser, over a small invented workload."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from playwright import sync_api

from support.fake_dashboard_server import ANSWER, FakeServer, serving
from support.fake_workload import FakeWorkload

CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PERIOD_S = 0.1
HOSTILE = "<img src=x onerror=alert(1)>"
WEIGHTS = {"search": 2.0, "assistant": 1.0, HOSTILE: 1.0}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@dataclass
class Dashboard:
    """A page, what is behind it, and what went wrong on it."""

    page: sync_api.Page
    server: FakeServer
    url: str
    problems: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def wait_until_live(self) -> None:
        self.page.wait_for_selector("[data-connection=live]")
        self.page.wait_for_selector("#request-rows tr")

    def freeze(self) -> None:
        """Stop the workload and wait until the page shows what it stopped at."""
        self.server.is_moving = False
        self.page.wait_for_timeout(4000 * PERIOD_S)


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def busy_workload() -> FakeWorkload:
    workload = FakeWorkload(WEIGHTS, num_blocks=512)
    for _ in range(30):
        workload.advance()
    return workload


@pytest.fixture(scope="module")
def open_server() -> Iterator[tuple[FakeServer, str]]:
    server = FakeServer(busy_workload(), period_s=PERIOD_S)
    with serving(server.app) as url:
        yield server, url


@pytest.fixture
def locked_server() -> Iterator[tuple[FakeServer, str]]:
    server = FakeServer(busy_workload(), api_key="sk-right")
    with serving(server.app) as url:
        yield server, url


Opener = Callable[..., Dashboard]


@pytest.fixture
def open_page(browser: sync_api.Browser) -> Iterator[Opener]:
    """Opens the dashboard of a server and writes down what the page complains about."""
    opened: list[Dashboard] = []

    def open_(server_at: tuple[FakeServer, str], width: int = 1440, **options: str) -> Dashboard:
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        server, url = server_at
        server.is_moving, server.is_silent = True, False
        dashboard = Dashboard(page, server, url)
        note = dashboard.problems.append
        page.on("request", lambda request: dashboard.hosts.add(request.url.split("/")[2]))
        page.on("console", lambda message: message.type == "error" and note(message.text))
        page.on("pageerror", lambda error: note(str(error)))
        page.on("requestfailed", lambda request: note(f"{request.url} {request.failure}"))
        page.on("dialog", lambda dialog: note(f"dialog: {dialog.message}"))
        page.goto(f"{url}/ui")
        opened.append(dashboard)
        return dashboard

    yield open_
    for dashboard in opened:
        dashboard.page.close()


@pytest.fixture
def dashboard(open_server: tuple[FakeServer, str], open_page: Opener) -> Dashboard:
    dashboard = open_page(open_server)
    dashboard.wait_until_live()
    return dashboard


def test_page_has_no_errors_and_stays_on_its_server_when_it_runs(
    open_server: tuple[FakeServer, str], open_page: Opener
) -> None:
    dashboard = open_page(open_server)
    dashboard.wait_until_live()
    dashboard.freeze()
    assert dashboard.problems == []
    assert dashboard.hosts == {dashboard.url.removeprefix("http://")}


def test_page_updates_by_itself(dashboard: Dashboard) -> None:
    rows = dashboard.page.locator("#request-rows")
    sync_api.expect(rows).not_to_have_text(rows.text_content() or "")


def test_numbers_equal_the_state_when_nothing_moves(dashboard: Dashboard) -> None:
    dashboard.freeze()
    state = httpx.get(f"{dashboard.url}/ui/state").json()
    shown = {
        name: dashboard.text(selector).replace(",", "")
        for name, selector in {
            "running": "#stat-running",
            "waiting": "#stat-waiting",
            "finished": "#stat-finished",
            "preemptions": "#stat-preemptions",
            "free": "#blocks-free",
            "used": "#blocks-used",
            "reserved": "#blocks-reserved",
            "cached": "#blocks-cached",
            "pinned": "#blocks-pinned",
            "jain": "#jain",
        }.items()
    }
    assert shown == {
        "running": str(state["requests"]["running"]),
        "waiting": str(state["requests"]["waiting"]),
        "finished": str(state["requests"]["finished"]),
        "preemptions": str(state["preemptions"]),
        "free": str(state["kv"]["free"]),
        "used": str(state["kv"]["used"]),
        "reserved": str(state["kv"]["reserved"]),
        "cached": str(state["kv"]["evictable"]),
        "pinned": str(state["kv"]["pinned"]),
        "jain": f"{state['jain_index']:.3f}",
    }


def test_tenant_rows_equal_the_state_when_nothing_moves(dashboard: Dashboard) -> None:
    dashboard.freeze()
    tenants = httpx.get(f"{dashboard.url}/ui/state").json()["tenants"]
    rows = dashboard.page.locator("#tenant-rows tr").all()
    shown = {row.get_attribute("data-key"): row.locator("td").all_inner_texts()[:2] for row in rows}
    assert shown == {t["id"]: [str(t["running"]), str(t["waiting"])] for t in tenants}


PIXEL_AT = """block => {
  const canvas = document.getElementById("map");
  const scale = window.devicePixelRatio;
  const { data } = canvas.getContext("2d").getImageData(block.x * scale, block.y * scale, 1, 1);
  return [...data];
}"""


def test_block_map_paints_a_used_block_in_the_colour_of_its_tenant(dashboard: Dashboard) -> None:
    dashboard.freeze()
    blocks = httpx.get(f"{dashboard.url}/ui/blocks").json()
    run = next(run for run in blocks["runs"] if run[2] == 1 and run[1] >= 3)
    x, y = find_block(dashboard, run[0] + 1)
    tenant = blocks["tenants"][run[3]]
    swatch = dashboard.page.locator(f'#tenant-rows tr[data-key="{tenant}"] .swatch')
    expected = swatch.evaluate(
        """swatch => {
          const context = new OffscreenCanvas(1, 1).getContext("2d");
          context.fillStyle = getComputedStyle(swatch).backgroundColor;
          context.fillRect(0, 0, 1, 1);
          return [...context.getImageData(0, 0, 1, 1).data];
        }"""
    )
    assert dashboard.page.evaluate(PIXEL_AT, {"x": x + 4, "y": y + 6}) == expected


def find_block(dashboard: Dashboard, block: int) -> tuple[float, float]:
    """Return where a block's cell begins on the map, by the module that places it."""
    return tuple(
        dashboard.page.evaluate(
            """async block => {
              const { fitGrid } = await import("./block-grid.js");
              const box = document.getElementById("map-box");
              const grid = fitGrid(512, box.clientWidth - 40, box.clientHeight);
              return [40 + (block % grid.columns) * grid.pitch,
                      Math.floor(block / grid.columns) * grid.rowPitch];
            }""",
            block,
        )
    )


def test_block_map_names_request_and_selects_it_when_clicked(dashboard: Dashboard) -> None:
    dashboard.freeze()
    blocks = httpx.get(f"{dashboard.url}/ui/blocks").json()
    run = next(run for run in blocks["runs"] if run[2] == 1 and run[1] >= 3)
    request_id = blocks["requests"][run[4]]
    x, y = find_block(dashboard, run[0] + 1)
    position = {"x": x + 4, "y": y + 6}
    dashboard.page.locator("#map").hover(position=position)
    tooltip = dashboard.text("#map-tooltip")
    assert f"Blocks {run[0]}\N{EN DASH}{run[0] + run[1] - 1}" in tooltip
    assert request_id in tooltip
    dashboard.page.locator("#map").click(position=position)
    assert dashboard.text("#focus-name") == request_id
    keys = dashboard.page.locator("#request-rows tr").evaluate_all(
        "rows => rows.map(row => row.dataset.key)"
    )
    assert keys == [request_id]


def test_block_map_moves_from_run_to_run_when_arrow_keys_are_pressed(dashboard: Dashboard) -> None:
    dashboard.freeze()
    second = httpx.get(f"{dashboard.url}/ui/blocks").json()["runs"][1]
    dashboard.page.locator("#map").focus()
    dashboard.page.keyboard.press("ArrowDown")
    dashboard.page.keyboard.press("ArrowRight")
    first, last = second[0], second[0] + second[1] - 1
    assert f"Blocks {first}\N{EN DASH}{last}" in dashboard.text("#map-tooltip")


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
    assert sum(widths) == pytest.approx(bar["width"], abs=2)
    assert "all seats were taken" in dashboard.text("#timeline-intervals")
    dashboard.page.keyboard.press("Escape")
    assert dashboard.page.locator("#timeline").is_hidden()


def test_chat_streams_and_tells_its_speed(dashboard: Dashboard) -> None:
    dashboard.page.fill("#chat-input", "Why does my request wait?")
    dashboard.page.keyboard.press("Enter")
    sync_api.expect(dashboard.page.locator(".assistant .message-text")).to_contain_text("each")
    assert dashboard.page.locator("#chat-stop").is_visible()
    dashboard.page.wait_for_selector("#chat-send:visible")
    assert "each tenant its share of every step" in dashboard.text(".assistant .message-text")
    facts = dashboard.text(".assistant .message-facts")
    assert "tokens/s" in facts
    assert "first after" in facts


def test_chat_aborts_the_request_when_stopped(dashboard: Dashboard) -> None:
    dashboard.page.fill("#chat-input", "Tell me everything")
    dashboard.page.click("#chat-send")
    sync_api.expect(dashboard.page.locator(".assistant .message-text")).to_contain_text("each")
    assert dashboard.server.num_open_chats == 1
    dashboard.page.click("#chat-stop")
    dashboard.page.wait_for_selector("#chat-send:visible")
    assert "stopped" in dashboard.text(".assistant .message-facts")
    answered = dashboard.text(".assistant .message-text").split()
    dashboard.freeze()
    assert dashboard.server.num_open_chats == 0
    assert len(answered) < 4 * len(ANSWER)


def test_hostile_tenant_name_is_shown_as_text(dashboard: Dashboard) -> None:
    assert HOSTILE in dashboard.text("#tenant-rows")
    assert dashboard.page.locator("main img").count() == 0
    assert dashboard.problems == []


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_page_never_scrolls_sideways(
    open_server: tuple[FakeServer, str], open_page: Opener, width: int
) -> None:
    dashboard = open_page(open_server, width=width)
    dashboard.wait_until_live()
    assert dashboard.page.evaluate("document.documentElement.scrollWidth") == width
    tables = dashboard.page.locator("main .scroll")
    widths = tables.evaluate_all("boxes => boxes.map(box => [box.scrollWidth, box.clientWidth])")
    assert all(content <= box for content, box in widths)


def luminance(dashboard: Dashboard) -> float:
    """Return how bright the page's background is, from 0 to 1."""
    return dashboard.page.evaluate(
        """() => {
          const context = new OffscreenCanvas(1, 1).getContext("2d");
          context.fillStyle = getComputedStyle(document.body).backgroundColor;
          context.fillRect(0, 0, 1, 1);
          return context.getImageData(0, 0, 1, 1).data.slice(0, 3).reduce((a, b) => a + b) / 765;
        }"""
    )


def test_theme_follows_the_system_until_it_is_chosen(
    open_server: tuple[FakeServer, str], open_page: Opener
) -> None:
    dashboard = open_page(open_server, color_scheme="light")
    assert luminance(dashboard) > 0.9
    dashboard.page.emulate_media(color_scheme="dark")
    assert luminance(dashboard) < 0.1
    dashboard.page.emulate_media(color_scheme="light")
    dashboard.page.click("#theme")
    assert luminance(dashboard) < 0.1
    dashboard.page.reload()
    assert luminance(dashboard) < 0.1


def test_lost_connection_is_shown_and_comes_back(dashboard: Dashboard) -> None:
    dashboard.server.is_silent = True
    dashboard.page.wait_for_selector("[data-connection=lost]")
    assert "Connection lost" in dashboard.text("#connection-text")
    dashboard.server.is_silent = False
    dashboard.page.wait_for_selector("[data-connection=live]")
    assert dashboard.text("#connection-text") == "Live"


def test_key_is_asked_for_and_used_when_the_server_wants_one(
    locked_server: tuple[FakeServer, str], open_page: Opener
) -> None:
    dashboard = open_page(locked_server)
    dashboard.page.wait_for_selector("#key-dialog[open]")
    dashboard.page.fill("#key-input", "sk-wrong")
    dashboard.page.keyboard.press("Enter")
    dashboard.page.wait_for_selector("[data-connection=locked] #key-dialog[open]")
    dashboard.page.fill("#key-input", "sk-right")
    dashboard.page.keyboard.press("Enter")
    dashboard.wait_until_live()
    assert "sk-right" not in dashboard.page.evaluate("JSON.stringify(localStorage)")
