"""Distributions against their own samples, and special functions against published values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evenflow.workloads.distributions import (
    Constant,
    Distribution,
    Gamma,
    Lengths,
    LogNormal,
    Mixture,
    Quantiles,
    Weibull,
    Zipf,
)
from evenflow.workloads.special import digamma, gamma_cdf, trigamma

NUM = 20_000
EULER = 0.5772156649015329


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


ALL = [
    Gamma(0.25, 3.0),
    Gamma(4.0, 3.0),
    Weibull(0.5, 2.0),
    Weibull(2.0, 2.0),
    LogNormal(20.0, 1.0),
    Zipf(1.1, 500),
    Quantiles((0.1, 0.5, 1.0), (2.0, 8.0, 100.0)),
    Mixture(((0.3, LogNormal(1.0, 0.5)), (0.7, Gamma(2.0, 10.0)))),
]


@pytest.mark.parametrize("distribution", ALL, ids=lambda d: f"{type(d).__name__}")
def test_drawn_values_have_the_mean(distribution: Distribution) -> None:
    assert distribution.draw(NUM, rng()).mean() == pytest.approx(distribution.mean, rel=0.05)


@pytest.mark.parametrize("distribution", ALL, ids=lambda d: f"{type(d).__name__}")
def test_cdf_is_the_share_of_drawn_values(distribution: Distribution) -> None:
    values = distribution.draw(NUM, rng())
    for level in (0.2, 0.5, 0.9):
        point = float(np.quantile(values, level))
        share = float((values <= point).mean())
        assert distribution.cdf(np.array([point]))[0] == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize(
    "distribution",
    [Gamma(0.25, 3.0), Gamma(9.0, 3.0), Weibull(0.4, 2.0), Weibull(3.0, 2.0), LogNormal(20.0, 1.5)],
    ids=str,
)
def test_fit_finds_the_parameters_that_were_drawn_from(distribution: Distribution) -> None:
    fitted = type(distribution).fit(distribution.draw(NUM, rng()))
    for name in distribution.__dataclass_fields__:
        assert getattr(fitted, name) == pytest.approx(getattr(distribution, name), rel=0.06)


def test_zipf_fit_finds_the_exponent() -> None:
    assert Zipf.fit(Zipf(1.1, 2000).draw(NUM, rng())).exponent == pytest.approx(1.1, rel=0.02)


@pytest.mark.parametrize("kind", [Gamma, Weibull])
def test_fit_is_where_the_likelihood_is_greatest(kind: type[Gamma] | type[Weibull]) -> None:
    values = LogNormal(5.0, 1.0).draw(500, rng())
    best = kind.fit(values)

    def log_likelihood(fitted: Gamma | Weibull) -> float:
        edges = np.concatenate((fitted.cdf(values * (1 - 1e-5)), fitted.cdf(values * (1 + 1e-5))))
        return float(np.log(edges[len(values) :] - edges[: len(values)]).sum())

    for shape_factor, mean_factor in ((1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95)):
        other = kind(best.shape * shape_factor, best.mean * mean_factor)
        assert log_likelihood(best) > log_likelihood(other)


@pytest.mark.parametrize("distribution", [Gamma(0.3, 2.0), Weibull(0.6, 2.0)], ids=str)
def test_cv_is_that_of_drawn_values(distribution: Gamma | Weibull) -> None:
    values = distribution.draw(200_000, rng())
    assert values.std() / values.mean() == pytest.approx(distribution.cv, rel=0.03)


def test_quantiles_fit_keeps_the_quantiles() -> None:
    values = LogNormal(100.0, 1.0).draw(NUM, rng())
    fitted = Quantiles.fit(values)
    assert fitted.cdf(np.quantile(values, [0.25, 0.95])) == pytest.approx([0.25, 0.95])
    assert fitted.mean == pytest.approx(values.mean(), rel=0.05)


def test_quantiles_cdf_is_the_highest_level_where_several_have_one_value() -> None:
    assert Quantiles((0.1, 0.5, 1.0), (3.0, 3.0, 9.0)).cdf(np.array([2.9, 3.0]))[1] == 0.5


def test_lengths_are_whole_and_within_bounds() -> None:
    lengths = Lengths(LogNormal(5.0, 2.0), low=2, high=50).draw(1000, rng())
    assert {type(length) for length in lengths} == {int}
    assert (min(lengths), max(lengths)) == (2, 50)


def test_constant_is_always_the_same() -> None:
    assert Constant(3.0).draw(3, rng()).tolist() == [3.0] * 3
    assert Constant(3.0).cdf(np.array([2.9, 3.0])).tolist() == [0.0, 1.0]


def test_digamma_and_trigamma_have_their_known_values() -> None:
    assert digamma(1.0) == pytest.approx(-EULER, rel=1e-10)
    assert digamma(0.5) == pytest.approx(-EULER - 2 * math.log(2), rel=1e-10)
    assert trigamma(1.0) == pytest.approx(math.pi**2 / 6, rel=1e-10)
    assert trigamma(0.5) == pytest.approx(math.pi**2 / 2, rel=1e-10)


def test_gamma_cdf_is_exact_where_it_is_elementary() -> None:
    values = np.array([0.0, 0.01, 0.7, 3.0, 40.0])
    assert gamma_cdf(1.0, values) == pytest.approx(1 - np.exp(-values), abs=1e-12)
    assert gamma_cdf(3.0, values) == pytest.approx(
        1 - np.exp(-values) * (1 + values + values**2 / 2), abs=1e-12
    )
    assert gamma_cdf(0.5, values) == pytest.approx([math.erf(math.sqrt(x)) for x in values])
