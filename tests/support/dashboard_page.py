"""The dashboard's page in a real browser, and what it complains about."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@dataclass
class Dashboard:
    """An open page.

    Attributes:
        page: to act on.
        url: of the server.
        problems: errors on the console, failed requests, dialogs.
        hosts: that the page asked for anything.
    """

    page: Page
    url: str
    problems: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Listen before anything is loaded."""
        note = self.problems.append
        self.page.on("console", lambda message: message.type == "error" and note(message.text))
        self.page.on("pageerror", lambda error: note(str(error)))
        self.page.on("requestfailed", lambda request: note(f"{request.url} {request.failure}"))
        self.page.on("dialog", lambda dialog: note(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))

    def text(self, selector: str) -> str:
        """Return what an element shows."""
        return self.page.locator(selector).inner_text()

    def number(self, selector: str) -> int:
        """Return the whole number that an element shows."""
        return int(self.text(selector).replace(",", ""))

    def keys(self, selector: str) -> list[str]:
        """Return the keys of the rows that a table shows."""
        rows = self.page.locator(f"{selector} tr")
        return rows.evaluate_all("rows => rows.map(row => row.dataset.key)")

    def wait_until_live(self) -> None:
        """Return when states arrive."""
        self.page.wait_for_selector("[data-connection=live]")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def open_dashboard(browser: Browser, url: str, width: int = 1440, theme: str = "dark") -> Dashboard:
    """Open the dashboard of a server."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    dashboard = Dashboard(page, url)
    page.goto(f"{url}/ui")
    return dashboard
