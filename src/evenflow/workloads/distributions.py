"""Distributions of gaps, lengths and pauses: drawn from, fitted to samples, and compared with them.

All parameters are fitted by maximum likelihood. Random numbers come from the generator given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from evenflow.workloads.special import digamma, erf, gamma_cdf, trigamma

Floats = npt.NDArray[np.float64]

_QUANTILE_LEVELS = (
    *(0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0),
)
_NUM_BISECTIONS = 60
_NUM_NEWTON_STEPS = 20


class Distribution(Protocol):
    """What values are drawn from: a dataclass of its parameters."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def mean(self) -> float:
        """The expected value."""
        ...

    def draw(self, num: int, rng: np.random.Generator) -> Floats:
        """Draw `num` independent values."""
        ...

    def cdf(self, values: Floats) -> Floats:
        """Return the probability of at most each of `values`."""
        ...


@dataclass(slots=True, frozen=True)
class Gamma:
    """A gamma distribution; a shape of 1 is exponential, below 1 burstier."""

    shape: float
    mean: float

    @property
    def cv(self) -> float:
        """Coefficient of variation: deviation over mean."""
        return 1 / math.sqrt(self.shape)

    def draw(self, num: int, rng: np.random.Generator) -> Floats:
        """Draw `num` independent values."""
        return rng.gamma(self.shape, self.mean / self.shape, num)

    def cdf(self, values: Floats) -> Floats:
        """Return the probability of at most each of `values`."""
        return gamma_cdf(self.shape, values * (self.shape / self.mean))

    @classmethod
    def fit(cls, values: Floats) -> Self:
        """Fit to positive values, not all equal.

        The likelihood is greatest where log(shape) - digamma(shape) = log(mean) - mean(log);
        Newton's method starts from Minka's approximation ("Estimating a Gamma distribution", 2002).
        """
        mean = float(values.mean())
        excess = math.log(mean) - float(np.log(values).mean())
        shape = (3 - excess + math.sqrt((excess - 3) ** 2 + 24 * excess)) / (12 * excess)
        for _ in range(_NUM_NEWTON_STEPS):
            slope = 1 / shape - trigamma(shape)
            shape = max(shape / 2, shape - (math.log(shape) - digamma(shape) - excess) / slope)
        return cls(shape, mean)


@dataclass(slots=True, frozen=True)
class Weibull:
    """A Weibull distribution; a shape of 1 is exponential, below 1 burstier."""

    shape: float
    mean: float

    @property
    def cv(self) -> float:
        """Coefficient of variation: deviation over mean."""
        ratio = math.lgamma(1 + 2 / self.shape) - 2 * math.lgamma(1 + 1 / self.shape)
        return math.sqrt(math.expm1(ratio))

    def draw(self, num: int, rng: np.random.Generator) -> Floats:
        """Draw `num` independent values."""
        return self._scale * rng.weibull(self.shape, num)

    def cdf(self, values: Floats) -> Floats:
        """Return the probability of at most each of `values`."""
        return np.asarray(-np.expm1(-((values / self._scale) ** self.shape)))

    @classmethod
    def fit(cls, values: Floats) -> Self:
        """Fit to positive values, not all equal."""
        logs = np.log(values / values.max())

        def slope(log_shape: float) -> float:
            shape = math.exp(log_shape)
            powers = np.exp(shape * logs)
            return float((powers * logs).sum() / powers.sum() - 1 / shape - logs.mean())

        shape = math.exp(_root(slope, math.log(1e-3), math.log(1e3)))
        scale = float(values.max()) * float(np.exp(shape * logs).mean()) ** (1 / shape)
        return cls(shape, scale * math.gamma(1 + 1 / shape))

    @property
    def _scale(self) -> float:
        return self.mean / math.gamma(1 + 1 / self.shape)


@dataclass(slots=True, frozen=True)
class LogNormal:
    """A log-normal distribution.

    Attributes:
        median: exp(mu).
        sigma: standard deviation of the logarithm.
    """

    median: float
    sigma: float

    @property
    def mean(self) -> float:
        """The expected value."""
        return self.median * math.exp(self.sigma**2 / 2)

    def draw(self, num: int, rng: np.random.Generator) -> Floats:
        """Draw `num` independent values."""
        return rng.lognormal(math.log(self.median), self.sigma, num)

    def cdf(self, values: Floats) -> Floats:
        """Return the probability of at most each of `values`."""
        scaled = np.log(np.maximum(values, 1e-300) / self.median) / (self.sigma * math.sqrt(2))
        return np.asarray((1 + erf(scaled)) / 2)

    @classmethod
    def fit(cls, values: Floats) -> Self:
        """Fit to positive values, not all equal."""
        logs = np.log(values)
        return cls(math.exp(logs.mean()), float(logs.std()))


@dataclass(slots=True, frozen=True)
class Zipf:
    """Whole numbers from 1 to `high`, n with a probability that goes as n ** -exponent."""

    exponent: float
    high: int

    @property
    def mean(self) -> float:
        """The expected value."""
        return float((self._weights() * np.arange(1, self.high + 1)).sum())

    def draw(self, num: int, rng: np.random.Generator) -> Floats:
        """Draw `num` independent values."""
        below = np.searchsorted(np.cumsum(self._weights()), rng.random(num))
        return np.minimum(below + 1, self.high).astype(np.float64)

    def cdf(self, values: Floats) -> Floats:
        """Return the probability of at most each of `values`."""
        sums = np.concatenate(([0.0], np.cumsum(self._weights())))
        return np.asarray(sums[np.clip(np.floor(values), 0, self.high).astype(np.int64)])

    @classmethod
    def fit(cls, values: Floats) -> Self:
        """Fit to whole numbers from 1 up, not all equal."""
        high = int(values.max())
        mean_log = float(np.log(values).mean())
        logs = np.log(np.arange(1, high + 1))

        def slope(exponent: float) -> float:
            weights = np.exp(-exponent * logs)
            return mean_log - float((weights * logs).sum() / weights.sum())

        return cls(_root(slope, 0.0, 10.0), high)

    def _weights(self) -> Floats:
        weights = np.arange(1, self.high + 1, dtype=np.float64) ** -self.exponent
        return np.asarray(weights / weights.sum())


@dataclass(slots=True, frozen=True)
class Quantiles:
    """An empirical distribution, known at some levels and log-linear between them.

    Attributes:
        levels: ascending, the last of them 1. Below the first, values are that of the first.
        values: ascending and positive, the quantiles at `levels`.
    """

    levels: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The expected value, each stretch counted by the logarithmic mean of its ends."""
        total = self.levels[0] * self.values[0]
        for index in range(1, len(self.levels)):
            low, high = self.values[index - 1 : index + 1]
            middle = low if low == high else (high - low) / math.log(high / low)
            total += (self.levels[index] - self.levels[index - 1]) * middle
        return total

    def draw(self, num: int, rng: np.random.Generator) -> Floats:
        """Draw `num` independent values."""
        return np.exp(np.interp(rng.random(num), self.levels, np.log(self.values)))

    def cdf(self, values: Floats) -> Floats:
        """Return the probability of at most each of `values`."""
        logs = np.log(np.maximum(values, 1e-300))
        # Of several levels with one value, the last is the probability of at most that value.
        known = np.log(self.values)
        unique, first_of_reversed = np.unique(known[::-1], return_index=True)
        levels = np.asarray(self.levels)[::-1][first_of_reversed]
        return np.asarray(np.interp(logs, unique, levels, left=0.0))

    @classmethod
    def fit(cls, values: Floats) -> Self:
        """Take the quantiles of positive values."""
        quantiles = np.quantile(values, _QUANTILE_LEVELS)
        return cls(_QUANTILE_LEVELS, tuple(float(value) for value in quantiles))


@dataclass(slots=True, frozen=True)
class Mixture:
    """One of several distributions, chosen anew for each value.

    Attributes:
        parts: (weight, distribution); the weights add up to 1.
    """

    parts: Sequence[tuple[float, Distribution]]

    @property
    def mean(self) -> float:
        """The expected value."""
        return sum(weight * part.mean for weight, part in self.parts)

    def draw(self, num: int, rng: np.random.Generator) -> Floats:
        """Draw `num` independent values."""
        chosen = rng.choice(len(self.parts), size=num, p=[weight for weight, _ in self.parts])
        drawn = np.stack([part.draw(num, rng) for _, part in self.parts])
        return np.asarray(drawn[chosen, np.arange(num)])

    def cdf(self, values: Floats) -> Floats:
        """Return the probability of at most each of `values`."""
        return np.asarray(sum(weight * part.cdf(values) for weight, part in self.parts))


@dataclass(slots=True, frozen=True)
class Constant:
    """Always the same value."""

    value: float

    @property
    def mean(self) -> float:
        """The expected value."""
        return self.value

    def draw(self, num: int, rng: np.random.Generator) -> Floats:
        """Return the value `num` times."""
        return np.full(num, self.value)

    def cdf(self, values: Floats) -> Floats:
        """Return the probability of at most each of `values`."""
        return (values >= self.value).astype(np.float64)


@dataclass(slots=True, frozen=True)
class Lengths:
    """Whole numbers of tokens: a distribution, rounded and cut off at both ends.

    Attributes:
        distribution: of the lengths before that.
        low: shorter lengths become this.
        high: longer lengths become this.
    """

    distribution: Distribution
    low: int = 1
    high: int = 1 << 31

    def draw(self, num: int, rng: np.random.Generator) -> list[int]:
        """Draw `num` independent lengths."""
        lengths = np.clip(np.rint(self.distribution.draw(num, rng)), self.low, self.high)
        drawn: list[int] = lengths.astype(np.int64).tolist()
        return drawn


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where an ascending function is 0, or the end of the range that is closer to it."""
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        if function(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
