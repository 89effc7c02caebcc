from __future__ import annotations

import pytest

from evenflow.memory.worth import HALF_LIFE_S, Worth, awaited, hoped_for


def test_value_halves_with_every_half_life_since_the_last_use() -> None:
    fresh = hoped_for(16, 0.25, 0, 1000.0)
    old = hoped_for(16, 1.0, 0, 1000.0 - 2 * HALF_LIFE_S)
    assert fresh == pytest.approx(old)


def test_value_grows_with_tokens_and_chance() -> None:
    least = hoped_for(16, 0.1, 0, 50.0)
    assert least < hoped_for(16, 0.2, 0, 50.0) == pytest.approx(hoped_for(32, 0.1, 0, 50.0))


def test_urgency_prolongs_a_hope_and_does_not_make_it_last_for_ever() -> None:
    urgent = hoped_for(16, 0.5, 3, 0.0)
    assert hoped_for(16, 0.5, 0, 2.9 * HALF_LIFE_S) < urgent
    assert hoped_for(16, 0.5, 0, 3.1 * HALF_LIFE_S) > urgent


def test_what_is_awaited_outlasts_every_hope() -> None:
    assert hoped_for(1 << 20, 1.0, 9, 1e9) < awaited(16, -9)


def test_the_more_urgent_of_two_that_are_awaited_outlasts_the_dearer() -> None:
    assert awaited(1 << 20, 0) < awaited(16, 1) < awaited(32, 1)


def test_what_nobody_claims_is_worth_less_than_any_hope() -> None:
    assert Worth() < hoped_for(1, 1e-9, -50, 0.0)
