"""Burstiness: how arrivals are spread within windows, and how the rate changes between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evenflow.workloads.analysis.sampling import Reservoir
from evenflow.workloads.distributions import Floats, Gamma, Weibull

_MIN_GAPS = 10
_NUM_SAMPLED_GAPS = 20_000
_SHARE_OF_TIES = 0.01


@dataclass(slots=True, frozen=True)
class Windows:
    """The windows of a trace in which something arrives.

    Attributes:
        window_s: length of each.
        index: (n,), which window, counted from the one of the first arrival.
        num_requests: (n,), how many arrive in it.
        cv: (n,), coefficient of variation of the gaps; nan where there are too few.
        gamma_shape: (n,), shape of the gamma distribution fitted to the gaps; nan likewise.
        weibull_shape: (n,), that of the Weibull distribution.
        unit_gaps: a sample of gaps, each over the mean gap of its window.
    """

    window_s: float
    index: Floats
    num_requests: Floats
    cv: Floats
    gamma_shape: Floats
    weibull_shape: Floats
    unit_gaps: Floats

    def typical(self, name: str) -> float | None:
        """Return the median of a column over requests, None if no window has enough of them."""
        column: Floats = getattr(self, name)
        known = ~np.isnan(column)
        if not known.any():
            return None
        order = np.argsort(column[known])
        weights = np.cumsum(self.num_requests[known][order])
        return float(column[known][order][np.searchsorted(weights, weights[-1] / 2)])


class WindowedArrivals:
    """Takes in arrivals in their order, and fits the gaps of each window once it is over.

    Many recorders round times, so that requests seem to come together. Where that is so, they are
    spread at random over the smallest step between different times of the window.

    Args:
        window_s: length of a window.
        rng: spreads and samples.
    """

    def __init__(self, window_s: float, rng: np.random.Generator) -> None:
        self._window_s = window_s
        self._rng = rng
        self._gaps: Reservoir[float] = Reservoir(_NUM_SAMPLED_GAPS, rng)
        self._rows: list[tuple[float, ...]] = []
        self._start_s = math.nan
        self._index = 0
        self._times: list[float] = []

    def add(self, arrival_s: float) -> None:
        """Take in the next arrival."""
        if math.isnan(self._start_s):
            self._start_s = arrival_s
        index = int((arrival_s - self._start_s) / self._window_s)
        if index != self._index:
            self._close()
            self._index = index
        self._times.append(arrival_s)

    def finish(self) -> Windows:
        """Return what was seen."""
        self._close()
        rows = np.array(self._rows, dtype=np.float64).reshape(len(self._rows), 5)
        index, num_requests, cv, gamma_shape, weibull_shape = rows.T
        return Windows(
            window_s=self._window_s,
            index=index,
            num_requests=num_requests,
            cv=cv,
            gamma_shape=gamma_shape,
            weibull_shape=weibull_shape,
            unit_gaps=np.array(self._gaps.values),
        )

    def _close(self) -> None:
        """Fit the window that is over."""
        if not self._times:
            return
        times = np.array(self._times)
        self._times = []
        cv = gamma_shape = weibull_shape = math.nan
        recorded = np.diff(times)
        if len(recorded) >= _MIN_GAPS and recorded.any():
            cv = float(recorded.std() / recorded.mean())
            gaps = np.diff(self._spread(times))
            gaps = np.maximum(gaps, gaps.mean() * 1e-9)
            if gaps.std() > gaps.mean() * 1e-6:
                gamma_shape = Gamma.fit(gaps).shape
                weibull_shape = Weibull.fit(gaps).shape
            for gap in (gaps / gaps.mean()).tolist():
                self._gaps.add(gap)
        row = (float(self._index), float(len(times)), cv, gamma_shape, weibull_shape)
        self._rows.append(row)

    def _spread(self, times: Floats) -> Floats:
        steps = np.diff(times)
        if (steps == 0).mean() < _SHARE_OF_TIES:
            return times
        smallest = float(steps[steps > 0].min())
        return np.sort(times + smallest * self._rng.random(len(times)))
