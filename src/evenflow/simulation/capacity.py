"""Finds the highest request rate that is borne: doubling until it is not, then bisection.

Knows: rates, and a function that tells whether one is borne.
Does not know: what bearing means, simulations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Capacity:
    """The outcome of a search, in requests per second.

    Attributes:
        rate: the highest rate that was tried and borne; None if none was.
        refused_rate: the lowest rate that was tried and not borne; None if all were.
    """

    rate: float | None
    refused_rate: float | None


def find_capacity(
    is_borne: Callable[[float], bool],
    start_rate: float,
    *,
    min_rate: float,
    max_rate: float,
    tolerance: float,
) -> Capacity:
    """Search for the rate from which on `is_borne` is false.

    A function that is not monotone has several such rates; the result is then next to one of them.

    Args:
        is_borne: tells of a rate whether it is borne; called once for each rate that is tried.
        start_rate: the first to try, between the two bounds.
        min_rate: if this is not borne, no rate is.
        max_rate: if this is borne, no higher one is tried.
        tolerance: how much higher, as a ratio, `refused_rate` may be than `rate`.
    """
    low, high = _bracket(is_borne, start_rate, min_rate, max_rate)
    if low is None or high is None:
        return Capacity(low, high)
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        if is_borne(middle):
            low = middle
        else:
            high = middle
    return Capacity(low, high)


def _bracket(
    is_borne: Callable[[float], bool], rate: float, min_rate: float, max_rate: float
) -> tuple[float | None, float | None]:
    """Return a rate that is borne and one at most twice as high that is not, as far as they are."""
    if is_borne(rate):
        while rate < max_rate:
            low, rate = rate, min(2 * rate, max_rate)
            if not is_borne(rate):
                return low, rate
        return rate, None
    while rate > min_rate:
        high, rate = rate, max(rate / 2, min_rate)
        if is_borne(rate):
            return rate, high
    return None, rate
