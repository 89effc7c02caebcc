"""Which of several distributions a sample looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from evenflow.workloads.analysis.goodness import Goodness, kolmogorov_smirnov
from evenflow.workloads.distributions import (
    Constant,
    Distribution,
    Floats,
    Gamma,
    LogNormal,
    Quantiles,
    Weibull,
    Zipf,
)

Kinds = Mapping[str, type[LogNormal | Gamma | Weibull | Zipf]]

GAP_KINDS: Mapping[str, type[Gamma | Weibull]] = {"gamma": Gamma, "weibull": Weibull}
DURATION_KINDS: Kinds = {"lognormal": LogNormal, **GAP_KINDS}
LENGTH_KINDS: Kinds = {**DURATION_KINDS, "zipf": Zipf}


class Fit(NamedTuple):
    """A distribution fitted to a sample.

    Attributes:
        kind: its name.
        distribution: itself.
        goodness: its distance from the sample, for `empirical` from the half that it does not
            know.
    """

    kind: str
    distribution: Distribution
    goodness: Goodness

    def as_dict(self) -> dict[str, Any]:
        """Return name, parameters and goodness."""
        return {
            "kind": self.kind,
            **asdict(self.distribution),
            "mean": self.distribution.mean,
            "ks_distance": self.goodness.distance,
            "ks_p_value": self.goodness.p_value,
            "num_values": self.goodness.num_values,
        }


def all_fits(values: Floats, kinds: Kinds, *, step: float = 0.0) -> list[Fit]:
    """Fit every kind, and the empirical distribution, to positive values; the best comes first.

    Args:
        values: the sample.
        kinds: what to fit.
        step: spacing of rounded values, see `kolmogorov_smirnov`.
    """
    if values.min() == values.max():
        constant = Constant(float(values[0]))
        return [Fit("constant", constant, Goodness(0.0, 1.0, len(values)))]
    fits = []
    for name, kind in kinds.items():
        fitted = kind.fit(values)
        fits.append(Fit(name, fitted, kolmogorov_smirnov(values, fitted, step=step)))
    fits.append(_empirical(values, step))
    return sorted(fits, key=lambda fit: fit.goodness.distance)


def _empirical(values: Floats, step: float) -> Fit:
    """Learn quantiles from every other value, and test them on the others."""
    known, unknown = values[::2], values[1::2]
    goodness = kolmogorov_smirnov(unknown, Quantiles.fit(known), step=step)
    return Fit("empirical", Quantiles.fit(values), goodness)
