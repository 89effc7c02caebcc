"""Endless arrival times. `arrivals.py` draws a known number of them at once.

Where the rate changes, time is stretched instead of gaps: a clock of its own runs as fast as the
rate, one gap has a mean of 1 there, and its shape is that of the window in which the gap begins. So
rates can be scaled to any machine, and arrivals stay as bursty as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import TypeVar

import numpy as np

from evenflow.workloads.distributions import Distribution, Floats, Gamma

Value = TypeVar("Value")

_CHUNK = 1024
_GAPS_AT_ONCE = 64
_HOUR_S = 3600.0


def endless(
    draw: Callable[[int, np.random.Generator], Iterable[Value]], rng: np.random.Generator
) -> Iterator[Value]:
    """Yield the values that `draw` draws, many at a time."""
    while True:
        yield from draw(_CHUNK, rng)


def renewal_times(
    gaps: Distribution, rng: np.random.Generator, start_s: float = 0.0
) -> Iterator[float]:
    """Yield arrivals with independent gaps, the first of them one gap after `start_s`."""
    while True:
        times = start_s + np.cumsum(gaps.draw(_CHUNK, rng))
        start_s = float(times[-1])
        yield from times.tolist()


def poisson_times(rate: float, rng: np.random.Generator) -> Iterator[float]:
    """Yield memoryless arrivals at a rate in requests per second."""
    return renewal_times(Gamma(1.0, 1 / rate), rng)


def burst_times(rate: float, burstiness: float, rng: np.random.Generator) -> Iterator[float]:
    """Yield arrivals with gamma gaps of shape `burstiness`: below 1 they come in bursts."""
    return renewal_times(Gamma(burstiness, 1 / rate), rng)


class PiecewiseRenewal:
    """Arrivals whose rate and gaps change from window to window.

    Args:
        rng: draws the gaps.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._num_mean_gaps_to_wait: float | None = None

    def window(self, rate: float, gaps: Distribution, window_s: float) -> Floats:
        """Draw the arrivals of the next window.

        Args:
            rate: requests per second.
            gaps: shape of the gaps, with a mean of 1.
            window_s: length of the window.

        Returns:
            in seconds from the begin of the window, ascending.
        """
        end = rate * window_s
        if self._num_mean_gaps_to_wait is None:
            self._num_mean_gaps_to_wait = float(gaps.draw(1, self._rng)[0])
        pieces = [np.array([self._num_mean_gaps_to_wait])]
        while (last := float(pieces[-1][-1])) < end:
            pieces.append(last + np.cumsum(gaps.draw(int(end - last) + _GAPS_AT_ONCE, self._rng)))
        arrivals = np.concatenate(pieces)
        num_inside = int(np.searchsorted(arrivals, end))
        self._num_mean_gaps_to_wait = float(arrivals[num_inside]) - end
        return arrivals[:num_inside] * (window_s / end) if num_inside else arrivals[:0]


def piecewise_times(
    windows: Iterable[tuple[float, Distribution]], window_s: float, rng: np.random.Generator
) -> Iterator[float]:
    """Yield arrivals over windows of (rate, gaps with a mean of 1)."""
    process = PiecewiseRenewal(rng)
    for index, (rate, gaps) in enumerate(windows):
        yield from (index * window_s + process.window(rate, gaps, window_s)).tolist()


def diurnal_times(
    hourly_rates: Sequence[float],
    rng: np.random.Generator,
    *,
    burstiness: float = 1.0,
    noise: float = 0.0,
    window_s: float = 60.0,
) -> Iterator[float]:
    """Yield arrivals whose rate follows the time of the day, as BurstGPT models them.

    Args:
        hourly_rates: requests per second of each hour; after the last comes the first again.
        rng: draws noise and gaps.
        burstiness: shape of the gamma gaps within a window.
        noise: sigma of a log-normal factor with a mean of 1 that every window's rate gets.
        window_s: length of a window.
    """
    noise_rng, gaps_rng = rng.spawn(2)
    gaps = Gamma(burstiness, 1.0)

    def windows() -> Iterator[tuple[float, Distribution]]:
        for index in count():
            hour = int(index * window_s / _HOUR_S) % len(hourly_rates)
            factor = math.exp(noise * noise_rng.standard_normal() - noise**2 / 2)
            yield hourly_rates[hour] * factor, gaps

    return piecewise_times(windows(), window_s, gaps_rng)
