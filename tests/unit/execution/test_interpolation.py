import logging

import pytest

from evenflow.execution.costs.interpolation import Curve, Range, Surface, weighted_sum


def curve(points: dict[float, float]) -> Curve:
    return Curve(points.items(), Range("a table", "tokens"))


def surface(points: dict[tuple[float, float], float]) -> Surface:
    rows = ((*at, value) for at, value in points.items())
    return Surface(rows, Range("a table", "requests"), Range("a table", "KV entries"))


def test_curve_gives_what_was_measured_at_every_point() -> None:
    points = {1.0: 5.0, 2.0: 4.5, 7.0: 9.0, 100.0: 12.0}
    measured = curve(points)
    assert {x: measured(x) for x in points} == points


def test_curve_is_straight_between_points() -> None:
    assert curve({2: 10, 4: 30})(3.5) == pytest.approx(25)


def test_curve_gives_the_first_value_below_the_first_point() -> None:
    assert curve({16: 9, 32: 11})(2) == 9


def test_curve_grows_in_proportion_beyond_the_last_point() -> None:
    assert curve({16: 9, 32: 11})(64) == pytest.approx(22)


def test_curve_warns_once_with_numbers_when_extrapolating(
    caplog: pytest.LogCaptureFixture,
) -> None:
    measured = curve({16: 9, 32: 11})
    with caplog.at_level(logging.WARNING):
        measured(32)
        assert not caplog.records
        measured(40)
        measured(50)
    assert [record.getMessage() for record in caplog.records] == [
        "a table was measured up to 32 tokens; times beyond are extrapolated in proportion, "
        "first at 40"
    ]


def test_surface_gives_what_was_measured_at_every_point() -> None:
    points = {(1, 16): 1.0, (1, 64): 3.0, (4, 16): 2.5, (4, 32): 3.5, (9, 16): 4.0}
    measured = surface(points)
    assert {at: measured(*at) for at in points} == points


def test_surface_is_exact_between_points_for_a_product() -> None:
    def law(row: float, column: float) -> float:
        return 2 + 0.5 * row + 0.1 * column + 0.3 * row * column

    measured = surface({(r, c): law(r, c) for r in (1, 2, 8) for c in (16, 32, 128)})
    assert measured(5, 100) == pytest.approx(law(5, 100))


def test_surface_uses_the_first_row_below_it() -> None:
    assert surface({(4, 16): 2.5, (8, 16): 4.0})(1, 16) == 2.5


def test_surface_warns_once_per_direction(caplog: pytest.LogCaptureFixture) -> None:
    measured = surface({(r, c): r * c for r in (1, 2) for c in (16, 32)})
    with caplog.at_level(logging.WARNING):
        assert measured(4, 16) == pytest.approx(64)
        assert measured(1, 64) == pytest.approx(64)
        measured(8, 128)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "a table was measured up to 2 requests",
        "a table was measured up to 32 KV entries",
    ]


def test_weighted_sum_is_exact_everywhere_for_curves_with_different_points() -> None:
    first, second = curve({1: 3, 10: 9, 64: 20}), curve({2: 1, 7: 8, 64: 10})
    total = weighted_sum([(2, first), (3, second)], Range("a table", "tokens"))
    for x in (1, 2, 3.3, 7, 8.5, 10, 33, 64):
        assert total(x) == pytest.approx(2 * first(x) + 3 * second(x))
