"""Takes the pictures of the dashboard in docs/images/, of a server under load.

python docs/screenshots.py               start `evenflow serve smollm2`, load it, take the pictures
python docs/screenshots.py --url URL     of a server that runs already and has its own load
"""

from __future__ import annotations

import argparse
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WATCHED_S = 75  # for the charts to fill
READY_TIMEOUT_S = 120

TENANTS = {"search": 4, "assistant": 3, "nightly-batch": 4, "evaluation": 2}
"""Clients of each tenant, which send one request after the other."""

TOPICS = [
    "how an operating system shares its memory between processes",
    "why the sky is blue at noon and red in the evening",
    "what a bakery does between midnight and six in the morning",
    "how a letter travels from one end of a country to the other",
]


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="of a running server; default: start one")
    parser.add_argument("--seconds", type=float, default=WATCHED_S, help="to watch before")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    if options.url:
        take_pictures(options.url, options.seconds)
        return
    with started_server() as url, load(url):
        take_pictures(url, options.seconds)


@contextmanager
def started_server() -> Iterator[str]:
    """Serve SmolLM2 with little memory, so that the map is full and requests have to wait."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("evenflow")), "serve", "smollm2"]
    command += ["--port", str(port), "--max-num-seqs", "10"]
    command += ["--num-blocks-override", "256", "--max-model-len", "2048"]
    with subprocess.Popen(command) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, process)
            yield url
        finally:
            process.terminate()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the server takes requests."""
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            if httpx.get(f"{url}/ready").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the server ended, or was not ready within {READY_TIMEOUT_S} s")


@contextmanager
def load(url: str) -> Iterator[None]:
    """Keep the clients of all tenants busy."""
    stop = threading.Event()
    clients = [
        threading.Thread(target=send_requests, args=(url, tenant, index, stop))
        for tenant, num_clients in TENANTS.items()
        for index in range(num_clients)
    ]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        stop.set()
        for client in clients:
            client.join()


def send_requests(url: str, tenant: str, index: int, stop: threading.Event) -> None:
    """Send chats of one tenant until told to stop."""
    rng = random.Random(f"{tenant}{index}")
    system = f"You write for {tenant}. " + "Be exact, be brief, and give an example. " * 12
    while not stop.is_set():
        body = {
            "model": "smollm2",
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": f"Explain {rng.choice(TOPICS)}. " * rng.randint(1, 20)},
            ],
            "user": tenant,
            "max_tokens": rng.randint(40, 300),
            "stream": True,
        }
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=None) as answer:
            for _ in answer.iter_lines():
                if stop.is_set():
                    break


def take_pictures(url: str, seconds: float) -> None:
    """Open the dashboard in three forms, watch them for a while, and keep what they show."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        pages = {
            "dashboard-dark": open_page(browser, url, "dark", (1440, 1310), scale=1),
            "dashboard-light": open_page(browser, url, "light", (1440, 1310), scale=1),
            "dashboard-phone": open_page(browser, url, "dark", (390, 844), scale=2),
        }
        for page in pages.values():
            page.wait_for_selector("[data-connection=live]")
        pages["dashboard-dark"].fill("#chat-input", "What is a KV cache? Answer in two sentences.")
        pages["dashboard-dark"].click("#chat-send")
        time.sleep(seconds)
        for name, page in pages.items():
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=IMAGES / f"{name}.png")
        page = pages["dashboard-light"]
        page.locator("#request-rows tr").first.click()
        page.wait_for_selector("#timeline-intervals tr")
        page.locator("#timeline").screenshot(path=IMAGES / "dashboard-request.png")
        browser.close()


def open_page(browser: Browser, url: str, theme: str, size: tuple[int, int], scale: int) -> Page:
    """Open the dashboard."""
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=theme,
        device_scale_factor=scale,
    )
    page.goto(f"{url}/ui")
    return page


if __name__ == "__main__":
    main()
