"""When requests arrive: functions from a rate to times in seconds, the first of them near 0.

`burstiness` is the shape of a gamma distribution of the gaps: 1 is a Poisson process, below 1
bursts, above 1 regular, infinite a metronome. The coefficient of variation of the gaps is
1 / sqrt(burstiness).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
RampStrategy = Literal["linear", "exponential"]


def gamma_arrivals(num: int, rate: float, burstiness: float, rng: np.random.Generator) -> Times:
    """Draw arrivals at a constant rate.

    The times are stretched so that the last one is exactly num / rate: the rate of a short run
    does not depend on the seed, only its pattern does.

    Args:
        num: how many.
        rate: requests per second; infinite for all at once.
        burstiness: shape of the gaps' distribution.
        rng: where randomness comes from.

    Returns:
        (num,), in seconds, ascending.
    """
    if math.isinf(rate) or num == 0:
        return np.zeros(num)
    times = np.cumsum(_unit_gaps(num, burstiness, rng))
    return np.asarray(times * (num / rate / times[-1]))


def ramp_arrivals(
    num: int,
    strategy: RampStrategy,
    start_rate: float,
    end_rate: float,
    burstiness: float,
    rng: np.random.Generator,
) -> Times:
    """Draw arrivals at a rate that goes from `start_rate` to `end_rate` over the requests.

    Request i of n comes at the rate start + (end - start) * i / (n - 1) when linear, and
    start * (end / start) ** (i / (n - 1)) when exponential.

    Returns:
        (num,), in seconds, ascending.
    """
    progress = np.arange(num) / max(num - 1, 1)
    if strategy == "linear":
        rates = start_rate + (end_rate - start_rate) * progress
    else:
        rates = start_rate * (end_rate / start_rate) ** progress
    return np.cumsum(_unit_gaps(num, burstiness, rng) / rates)


def scaled_to_rate(times: Times, rate: float) -> Times:
    """Stretch recorded arrivals to a mean rate, keeping their shape; begin at 0.

    Args:
        times: (n,), in seconds, ascending.
        rate: requests per second; infinite leaves the recorded rate.
    """
    times = times - times[:1]
    if math.isinf(rate) or len(times) < 2 or times[-1] == 0:
        return times
    return np.asarray(times * (len(times) / rate / times[-1]))


def _unit_gaps(num: int, burstiness: float, rng: np.random.Generator) -> Times:
    """Draw gaps with a mean of one second."""
    if math.isinf(burstiness):
        return np.ones(num)
    return rng.gamma(burstiness, 1.0 / burstiness, size=num)
