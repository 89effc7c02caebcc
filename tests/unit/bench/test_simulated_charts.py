from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from evenflow.bench.simulated.charts import Chart, Series, figure, short

HOSTILE = '"><script>alert(1)</script>&'


def parsed(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(figure(chart))


def ticks(chart: Chart) -> list[str]:
    return [text.text or "" for text in parsed(chart).iter("text")]


def a_chart(x: list[float], y: list[float], *, is_log_x: bool = False) -> Chart:
    return Chart("Title", "time (s)", "tokens", [Series("a", x, y)], is_log_x)


def test_line_goes_through_its_points_to_scale() -> None:
    chart = parsed(a_chart([0.0, 5.0, 10.0], [0.0, 10.0, 5.0]))
    (line,) = (path for path in chart.iter("path") if path.get("class") == "line c0")
    points = [tuple(map(float, p.split())) for p in (line.get("d") or "")[1:].split("L")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.1)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.1)


def test_axes_have_round_ticks_that_enclose_the_values() -> None:
    assert ticks(a_chart([0.0, 9.7], [1.0, 1730.0])) == [
        *("0", "500", "1k", "1.5k", "2k"),
        *("0", "5", "10"),
        "time (s)",
    ]


def test_log_axis_has_a_tick_per_decade() -> None:
    chart = a_chart([1.0, 20.0, 30_000.0], [0.0, 0.5, 1.0], is_log_x=True)
    assert ticks(chart)[-6:-1] == ["1", "10", "100", "1k", "10k"]


def test_short_log_axis_has_round_ticks() -> None:
    chart = Chart("T", "x", "y", [Series("a", [0.0, 1.0], [11.0, 29.0])], is_log_y=True)
    assert ticks(chart)[:4] == ["15", "20", "25", "0"]


@pytest.mark.parametrize("is_log_x", [False, True])
@pytest.mark.parametrize("x", [[3.0, 3.0], [0.0, 0.0], [1e-9, 2e-9]])
def test_chart_can_be_drawn_when_values_are_alike(x: list[float], is_log_x: bool) -> None:
    assert "nan" not in figure(a_chart(x, [0.0, 0.0], is_log_x=is_log_x))


def test_chart_says_so_when_there_is_nothing_to_show() -> None:
    assert ticks(Chart("T", "x", "y", [Series("a", [], [])])) == ["nothing to show"]


def test_points_tell_what_they_are() -> None:
    series = Series("a", [1.0, 2.0], [3.0, 4.0], labels=["first", HOSTILE])
    chart = parsed(Chart("T", "x", "y", [series]))
    assert [title.text for title in chart.iter("title")] == ["first", HOSTILE]


def test_legend_names_the_series_when_there_are_several() -> None:
    lines = [Series(name, [0.0, 1.0], [0.0, 1.0], color=i) for i, name in enumerate("ab")]
    front = Series("front", [0.0, 1.0], [0.0, 1.0], color=-1)
    names = [
        item.findtext("i", "") + (item.find("i").tail or "")
        for item in parsed(Chart("T", "x", "y", [*lines, front])).iter("li")
    ]
    assert names == ["a", "b"]
    assert not list(parsed(Chart("T", "x", "y", lines[:1])).iter("li"))


def test_texts_are_no_markup() -> None:
    series = [Series(HOSTILE, np.arange(2), np.arange(2)), Series("b", [0.0, 1.0], [0.0, 1.0])]
    assert "<script" not in figure(Chart(HOSTILE, HOSTILE, HOSTILE, series))


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.25, "0.25"), (999.0, "999"), (1500.0, "1.5k"), (2e6, "2M")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text
