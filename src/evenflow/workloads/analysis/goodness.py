"""How far a sample is from a distribution."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from evenflow.workloads.distributions import Distribution, Floats

_NUM_TERMS = 100
_SERIES_FROM = 0.2  # below, the probability is 1 to many digits and the series converges slowly


class Goodness(NamedTuple):
    """Result of a Kolmogorov-Smirnov test.

    Attributes:
        distance: greatest difference between the two cumulative distributions, 0 to 1.
        p_value: probability of at least this distance if the sample came from the distribution.
            Optimistic where parameters were fitted to the same sample, and near 0 for any model of
            a large sample: the distance is what tells.
        num_values: size of the sample.
    """

    distance: float
    p_value: float
    num_values: int


def kolmogorov_smirnov(
    values: Floats, distribution: Distribution, *, step: float = 0.0
) -> Goodness:
    """Compare a sample with a distribution.

    Args:
        values: the sample, not empty.
        distribution: what it may come from.
        step: spacing of the values if they are rounded ones; the two are then compared half way
            between possible values, where rounding makes no difference. 0 if they are not.
    """
    unique, counts = np.unique(values, return_counts=True)
    up_to = np.cumsum(counts) / len(values)
    before = up_to - counts / len(values)
    above = np.abs(up_to - distribution.cdf(unique + step / 2))
    below = np.abs(before - distribution.cdf(unique - step / 2))
    distance = float(max(above.max(), below.max()))
    return Goodness(distance, _p_value(distance, len(values)), len(values))


def _p_value(distance: float, num_values: int) -> float:
    """Kolmogorov's asymptotic distribution with Stephens' correction for small samples (1970)."""
    root = math.sqrt(num_values)
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < _SERIES_FROM:
        return 1.0
    terms = [math.exp(-2 * (index * scaled) ** 2) for index in range(1, _NUM_TERMS)]
    series = sum(terms[::2]) - sum(terms[1::2])
    return min(1.0, max(0.0, 2 * series))
