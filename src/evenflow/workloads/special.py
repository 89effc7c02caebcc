"""Special functions that fitting needs, so that it needs no library for them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_ASYMPTOTIC_FROM = 10.0
_MAX_TERMS = 10_000
_PRECISION = 1e-13
_TINY = 1e-300

erf = np.vectorize(math.erf, otypes=[np.float64])
"""The error function of each value."""


def digamma(x: float) -> float:
    """Return the derivative of log(gamma(x)), for x > 0.

    The recurrence psi(x) = psi(x + 1) - 1 / x leads to where the asymptotic series holds.
    """
    total = 0.0
    while x < _ASYMPTOTIC_FROM:
        total -= 1 / x
        x += 1
    square = 1 / (x * x)
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    return total + math.log(x) - 0.5 / x - series


def trigamma(x: float) -> float:
    """Return the derivative of digamma, for x > 0."""
    total = 0.0
    while x < _ASYMPTOTIC_FROM:
        total += 1 / (x * x)
        x += 1
    square = 1 / (x * x)
    series = square * (1 / 6 - square * (1 / 30 - square * (1 / 42 - square / 30)))
    return total + 1 / x + square / 2 + series / x


def gamma_cdf(shape: float, values: Floats) -> Floats:
    """Return the regularised lower incomplete gamma function P(shape, x) of each value.

    A power series below shape + 1 and a continued fraction above, as in Numerical Recipes,
    section 6.2.
    """
    values = np.maximum(values, 0.0)
    result = np.zeros_like(values)
    is_low = values < shape + 1
    result[is_low] = _series(shape, values[is_low])
    result[~is_low] = 1 - _fraction(shape, values[~is_low])
    return result


def _series(shape: float, x: Floats) -> Floats:
    term = np.full_like(x, 1 / shape)
    total = term.copy()
    for step in range(1, _MAX_TERMS):
        term *= x / (shape + step)
        total += term
        if not (term > total * _PRECISION).any():
            break
    return total * _front(shape, x)


def _fraction(shape: float, x: Floats) -> Floats:
    """Evaluate the continued fraction by Lentz's method."""
    b = x + 1 - shape
    c = np.full_like(x, 1 / _TINY)
    d = 1 / b
    total = d.copy()
    for step in range(1, _MAX_TERMS):
        a = -step * (step - shape)
        b = b + 2
        d = a * d + b
        d = 1 / np.where(np.abs(d) < _TINY, _TINY, d)
        c = b + a / c
        c = np.where(np.abs(c) < _TINY, _TINY, c)
        total *= c * d
        if not (np.abs(c * d - 1) > _PRECISION).any():
            break
    return total * _front(shape, x)


def _front(shape: float, x: Floats) -> Floats:
    """Return x ** shape * exp(-x) / gamma(shape)."""
    return np.exp(shape * np.log(np.maximum(x, _TINY)) - x - math.lgamma(shape))
