"""The last minute, from counts that only grow: percentiles and rates over a sliding window.

Counting an event costs nothing here: a window keeps what a counter or a histogram had counted at
some moments (its marks), and the difference to now is what happened since. There are some sixty
marks, however much is counted.
"""

from __future__ import annotations

from collections import deque
from operator import sub
from typing import Generic, TypeVar

from evenflow.server.instruments import Counter, Histogram, Labels, Percentiles, percentiles

T = TypeVar("T")

WINDOW_S = 60.0
RATE_WINDOW_S = 5.0
MARKS_PER_WINDOW = 60


class Marks(Generic[T]):
    """What some cumulative value was, at moments of the recent past.

    Args:
        started_s: when counting began.
        start: what the value was then.
        span_s: how far back the oldest mark is to lie.
    """

    def __init__(self, started_s: float, start: T, span_s: float) -> None:
        self._span_s = span_s
        self._marks = deque([(started_s, start)])

    def is_due(self, now_s: float) -> bool:
        """Whether the last mark is old enough for another one."""
        return now_s - self._marks[-1][0] >= self._span_s / MARKS_PER_WINDOW

    def add(self, now_s: float, value: T) -> None:
        """Remember that the value is `value` now."""
        self._marks.append((now_s, value))

    def base(self, now_s: float) -> tuple[float, T]:
        """Return the youngest mark that is at least the window's span old, else the oldest one."""
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= now_s - self._span_s:
            marks.popleft()
        return marks[0]


class LatencyWindow:
    """Percentiles of what a histogram counted lately."""

    def __init__(self, histogram: Histogram, started_s: float, span_s: float = WINDOW_S) -> None:
        self._histogram = histogram
        self._marks = Marks(started_s, list(histogram.counts), span_s)

    def mark(self, now_s: float) -> None:
        """Remember how far the histogram has come."""
        if self._marks.is_due(now_s):
            self._marks.add(now_s, list(self._histogram.counts))

    def percentiles(self, now_s: float) -> Percentiles | None:
        """Return the percentiles of the window, or None if nothing was counted in it."""
        _, base = self._marks.base(now_s)
        recent = list(map(sub, self._histogram.counts, base))
        return percentiles(self._histogram.edges, recent)


class RateWindow:
    """How fast a counter grew lately."""

    def __init__(self, counter: Counter, started_s: float, span_s: float = RATE_WINDOW_S) -> None:
        self._counter = counter
        self._marks = Marks(started_s, dict(counter.values), span_s)

    def mark(self, now_s: float) -> None:
        """Remember how far the counter has come."""
        if self._marks.is_due(now_s):
            self._marks.add(now_s, dict(self._counter.values))

    def start_s(self, now_s: float) -> float:
        """Return when the window begins."""
        return self._marks.base(now_s)[0]

    def growth(self, now_s: float) -> dict[Labels, float]:
        """Return what each set of labels gained within the window."""
        _, base = self._marks.base(now_s)
        return {
            labels: value - base.get(labels, 0.0) for labels, value in self._counter.values.items()
        }

    def per_second(self, now_s: float) -> dict[Labels, float]:
        """Return the mean growth per second of each set of labels."""
        elapsed_s = now_s - self.start_s(now_s)
        if elapsed_s <= 0:
            return {}
        return {labels: gain / elapsed_s for labels, gain in self.growth(now_s).items()}
