"""The report on simulated runs in a real browser, opened as a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from evenflow.bench.simulated.report import write_report
from support.dashboard_page import CHROMIUM, chromium
from support.simulated_runs import MEASURES, a_run

HOSTILE = "</title><img src=https://example.invalid/x onerror=alert(1)>"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module", params=["one", "several"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    runs = [a_run(tenants=("ann", HOSTILE))]
    if request.param == "several":
        runs += [a_run(f"{HOSTILE} {step_s}", step_s=step_s) for step_s in (0.02, 0.03)]
    write_report(runs, MEASURES, path)
    return path


@pytest.fixture(params=[(360, "light"), (1440, "dark")], ids=["phone", "desktop"])
def page(
    request: pytest.FixtureRequest, browser: Browser, report: Path
) -> Iterator[tuple[Page, list[str]]]:
    """Open the report, and note what it complains about and asks for."""
    width, theme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    notes: list[str] = []
    page.on("console", lambda message: notes.append(message.text))
    page.on("pageerror", lambda error: notes.append(str(error)))
    page.on("dialog", lambda dialog: notes.append(dialog.message))
    page.on("request", lambda asked: notes.append(asked.url))
    page.goto(report.as_uri())
    notes.remove(report.as_uri())
    yield page, [note for note in notes if note != "data:,"]
    page.close()


def test_report_has_no_errors_and_asks_for_nothing(page: tuple[Page, list[str]]) -> None:
    assert page[1] == []


def test_report_does_not_scroll_sideways_and_its_text_can_be_read(
    page: tuple[Page, list[str]],
) -> None:
    root = page[0].locator("html")
    assert root.evaluate("root => root.scrollWidth <= root.clientWidth")
    heights = (
        page[0]
        .locator("svg .tick")
        .evaluate_all("ticks => ticks.map(tick => tick.getBoundingClientRect().height)")
    )
    assert min(heights) > 9
    assert max(heights) < 26


def test_report_shows_hostile_names_as_text(page: tuple[Page, list[str]]) -> None:
    assert HOSTILE in page[0].locator("body").inner_text()
    assert page[0].locator("img").count() == 0


def test_report_draws_in_colours_of_its_theme(page: tuple[Page, list[str]]) -> None:
    def colour(selector: str, name: str) -> str:
        element = page[0].locator(selector).first
        return element.evaluate(f"element => getComputedStyle(element).{name}")

    colours = {colour("body", "backgroundColor"), colour(".line.c0", "stroke")}
    assert len(colours | {colour("body", "color"), "none", "rgb(0, 0, 0)"}) == 5
