"""Time comes from outside: every component that needs it is given a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of seconds that never goes backwards."""

    def now_s(self) -> float:
        """Return the current time in seconds from an arbitrary origin."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()


class VirtualClock:
    """A clock that stands still until it is told to move; for simulation and tests."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Return the time it was last set to."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds` (not negative)."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self._now_s += seconds

    def advance_to(self, now_s: float) -> None:
        """Move forward to `now_s`; nothing happens if that is past."""
        self._now_s = max(self._now_s, now_s)
