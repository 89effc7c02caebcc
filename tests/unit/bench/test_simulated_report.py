from __future__ import annotations

from html.parser import HTMLParser

import pytest

from evenflow.bench.simulated.overview import overview, pareto_front
from evenflow.bench.simulated.report import report
from evenflow.bench.simulated.run import SimulatedRun
from support.simulated_runs import MEASURES, a_run

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"
VOID = {"meta", "link"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and notes what there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run() -> SimulatedRun:
    return a_run()


@pytest.fixture(scope="module")
def slow_run() -> SimulatedRun:
    return a_run("slow", policy="priority", step_s=0.02)


def test_report_is_one_sound_page_that_loads_nothing(run: SimulatedRun) -> None:
    page = Page(report([run], MEASURES))
    assert page.addresses == ["data:,"]
    assert not {"script", "img", "iframe", "object"} & set(page.tags)


def test_report_of_one_run_shows_its_figures_and_all_charts(run: SimulatedRun) -> None:
    page = Page(report([run], MEASURES))
    for title in (
        *("Time to first token", "Time per output token", "End-to-end latency", "Throughput"),
        *("Running", "Waiting", "KV memory in use", "Service, fcfs"),
    ):
        assert title in page.text
    assert page.tags.count("svg") == 8
    assert f"{run.summary['request_throughput']:.2f}" in page.text
    assert "10 ms for every step; made up" in page.text


def test_report_of_several_runs_compares_them(run: SimulatedRun, slow_run: SimulatedRun) -> None:
    page = Page(report([run, slow_run], MEASURES))
    ratio = slow_run.summary["median_ttft_ms"] / run.summary["median_ttft_ms"]
    assert f"\N{MULTIPLICATION SIGN}{ratio:.2f}" in page.text
    assert "Throughput against tail latency" in page.text
    assert "Pareto" not in page.text  # the front is a faint line without a name
    assert page.text.count("Service, ") == 2


def test_report_shows_hostile_names_as_text() -> None:
    page = Page(report([a_run(HOSTILE, tenants=(HOSTILE, "bob"))], MEASURES))
    assert not {"script", "img"} & set(page.tags)
    assert HOSTILE in page.text


def test_report_names_the_best_served_tenants_when_there_are_many() -> None:
    tenants = [f"tenant-{index}" for index in range(60)]
    page = Page(report([a_run(tenants=tenants, num_requests=60)], MEASURES))
    assert "and 10 more" in page.text


def test_report_shows_the_first_runs_when_there_are_more_than_colours(run: SimulatedRun) -> None:
    page = Page(report([run] * 12, MEASURES))
    assert page.text.count("Service, ") == 8
    assert page.tags.count("circle") == 24


def test_overview_gives_ratios_to_the_first_run(run: SimulatedRun, slow_run: SimulatedRun) -> None:
    table = overview([run, slow_run], (50.0, 99.0))
    column = table.titles.index("TTFT p99")
    first, second = (cells[column] for cells in table.rows.values())
    assert (first.ratio, first.verdict) == (None, None)
    assert second.ratio == pytest.approx(second.value / first.value)
    assert second.verdict == "worse"


def test_overview_leaves_out_what_no_run_has_a_figure_for(run: SimulatedRun) -> None:
    without = dict.fromkeys(("request_goodput", "slo_attainment_ratio", "jain_index"))
    bare = SimulatedRun(
        label="bare",
        variant=run.variant,
        sources=run.sources,
        summary={**run.summary, **without},
        result=run.result,
    )
    titles = overview([bare], (99.0,)).titles
    assert not {"goodput", "SLO %", "Jain"} & set(titles)
    assert {"goodput", "SLO %", "Jain"} <= set(overview([bare, run], (99.0,)).titles)


def test_pareto_front_has_the_points_that_no_other_beats() -> None:
    points = [(1.0, 5.0), (2.0, 6.0), (3.0, 9.0), (2.5, 9.5), (2.0, 7.0), (0.5, 5.0)]
    assert pareto_front(points) == [0, 1, 2]


def test_pareto_front_has_one_of_equal_points() -> None:
    assert len(pareto_front([(1.0, 1.0), (1.0, 1.0)])) == 1
