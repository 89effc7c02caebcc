from __future__ import annotations

import pytest

from evenflow.core.clock import MonotonicClock, VirtualClock


def test_manual_clock_stands_still_until_it_is_moved() -> None:
    clock = VirtualClock(5.0)
    assert (clock.now_s(), clock.now_s()) == (5.0, 5.0)
    clock.advance(0.25)
    clock.advance(0.0)
    assert clock.now_s() == 5.25


def test_manual_clock_refuses_to_go_back() -> None:
    clock = VirtualClock()
    with pytest.raises(ValueError, match="go back by 1 s"):
        clock.advance(-1)
    assert clock.now_s() == 0.0


def test_monotonic_clock_never_goes_back() -> None:
    clock = MonotonicClock()
    readings = [clock.now_s() for _ in range(100)]
    assert readings == sorted(readings)
