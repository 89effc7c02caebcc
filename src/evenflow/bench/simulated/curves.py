"""What a simulation's columns say over time, as arrays short enough to draw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NUM_POINTS = 240
"""Points of a curve: more than that a chart cannot show."""


def delivered(
    first_s: Floats,
    end_s: Floats,
    at_first: npt.ArrayLike,
    afterwards: npt.ArrayLike,
    times_s: Floats,
) -> Floats:
    """Return how much all requests together have been given at some points in time.

    Args:
        first_s: (n,), when each request got its first token.
        end_s: (n,), when it got its last.
        at_first: (n,), what it is given at its first token.
        afterwards: (n,), what it is given evenly from then to its end.
        times_s: (m,), the points in time.

    Returns:
        (m,).
    """
    at_first, afterwards = np.asarray(at_first, float), np.asarray(afterwards, float)
    width_s = end_s - first_s
    lasts = width_s > 0
    order = np.argsort(first_s)
    sums = np.concatenate([[0.0], np.cumsum((at_first + np.where(lasts, 0.0, afterwards))[order])])
    at_once = sums[np.searchsorted(first_s[order], times_s, side="right")]
    # The rest is a sum of ramps: between the points where one begins or ends it is a straight line.
    slopes = afterwards[lasts] / width_s[lasts]
    knots_s = np.concatenate([first_s[lasts], end_s[lasts]])
    if not len(knots_s):
        return np.asarray(at_once)
    order = np.argsort(knots_s)
    knots_s = knots_s[order]
    slope = np.cumsum(np.concatenate([slopes, -slopes])[order])
    levels = np.concatenate([[0.0], np.cumsum(slope[:-1] * np.diff(knots_s))])
    return np.asarray(at_once + np.interp(times_s, knots_s, levels))


def per_second(totals: Floats, times_s: Floats) -> Floats:
    """Return the mean rate between each two points of a running total."""
    return np.diff(totals) / np.diff(times_s)


def distribution(values: Floats) -> tuple[Floats, Floats]:
    """Return points of a cumulative distribution: values, and the share that is not above them."""
    shares = np.linspace(0.0, 1.0, min(len(values), NUM_POINTS))
    return np.quantile(values, shares), shares


def thinned(times_s: Floats, values: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return the largest value of each of `NUM_POINTS` stretches of a series, so peaks stay.

    Args:
        times_s: (n,), ascending.
        values: (n,).
    """
    values = np.asarray(values, float)
    if len(values) <= NUM_POINTS:
        return times_s, values
    starts = np.linspace(0, len(values), NUM_POINTS, endpoint=False).astype(int)
    return times_s[starts], np.maximum.reduceat(values, starts)
