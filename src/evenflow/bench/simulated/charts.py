"""Line charts as SVG, drawn in the colours of the page they stand on.

Text has a fixed size in the drawing's own units, so a chart should be shown near its natural
width: a phone's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
import numpy.typing as npt

NUM_COLORS = 8

_WIDTH, _HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 350, 8, 194
_MAX_TICKS = 5
_FEW_DECADES = 1.7
"""A logarithmic axis that is shorter has too few powers of ten for its ticks."""

_SUFFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(slots=True, frozen=True)
class Series:
    """A line, or marked points.

    Attributes:
        name: in the legend.
        x: (n,), finite.
        y: (n,), finite.
        labels: text of each point; with them the points are marked and not joined.
        color: which of the `NUM_COLORS`; -1 for a faint line without a place in the legend.
    """

    name: str
    x: npt.ArrayLike
    y: npt.ArrayLike
    labels: Sequence[str] = ()
    color: int = 0


@dataclass(slots=True, frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: what it shows.
        x_label: under the x axis, with its unit.
        y_label: after the title, with its unit.
        series: what is drawn, the first on top.
        is_log_x: the x axis is logarithmic.
        is_log_y: the y axis is; else it begins at 0.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = field(default_factory=tuple)
    is_log_x: bool = False
    is_log_y: bool = False


def figure(chart: Chart) -> str:
    """Return a chart with title and legend as HTML."""
    named = [series for series in chart.series if series.color >= 0]
    legend = "".join(
        f'<li><i class="c{s.color % NUM_COLORS}"></i>{escape(s.name)}</li>' for s in named
    )
    return (
        f"<figure><figcaption><b>{escape(chart.title)}</b> <span>{escape(chart.y_label)}</span>"
        f"</figcaption>{_svg(chart)}"
        + (f"<ul>{legend}</ul>" if len(named) > 1 else "")
        + "</figure>"
    )


def _svg(chart: Chart) -> str:
    drawn = [(s, np.asarray(s.x, float), np.asarray(s.y, float)) for s in chart.series]
    drawn = [entry for entry in drawn if len(entry[1])]
    name = escape(f"{chart.title}, {chart.y_label}, over {chart.x_label}")
    opening = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">'
    if not drawn:
        return (
            f'{opening}<text class="tick" x="{_WIDTH / 2}" y="{_HEIGHT / 2}" '
            f'text-anchor="middle">nothing to show</text></svg>'
        )
    all_x = np.concatenate([x for _, x, _ in drawn])
    all_y = np.concatenate([y for _, _, y in drawn])
    x_ticks, x_place = _log_axis(all_x) if chart.is_log_x else _linear_axis(all_x)
    y_ticks, y_place = _log_axis(all_y) if chart.is_log_y else _linear_axis(np.append(all_y, 0.0))

    def across(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return _LEFT + (_RIGHT - _LEFT) * x_place(np.asarray(values, float))

    def down(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return _BOTTOM - (_BOTTOM - _TOP) * y_place(np.asarray(values, float))

    parts = [opening]
    for value, y in zip(y_ticks, down(y_ticks), strict=True):
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(_tick(_LEFT - 6, y + 4, "end", short(value)))
    for value, x in zip(x_ticks, across(x_ticks), strict=True):
        parts.append(f'<path class="grid" d="M{x:.1f} {_BOTTOM}v4"/>')
        parts.append(_tick(x, _BOTTOM + 16, "middle", short(value)))
    parts.append(_tick((_LEFT + _RIGHT) / 2, _HEIGHT - 4, "middle", chart.x_label))
    parts += [_mark(series, across(x), down(y)) for series, x, y in reversed(drawn)]
    return "".join(parts) + "</svg>"


def _mark(series: Series, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> str:
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    if not series.labels:
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        look = "faint" if series.color < 0 else f"line c{series.color % NUM_COLORS}"
        return f'<path class="{look}" d="M{path}"/>'
    return "".join(
        f'<circle class="c{series.color % NUM_COLORS}" cx="{px:.1f}" cy="{py:.1f}" r="4">'
        f"<title>{escape(label)}</title></circle>"
        for (px, py), label in zip(points, series.labels, strict=True)
    )


def _tick(x: float, y: float, anchor: str, text: str) -> str:
    return (
        f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


_Place = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def _linear_axis(values: npt.NDArray[np.float64]) -> tuple[list[float], _Place]:
    """Return round values along an axis, and what maps values to 0..1 on it."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and low < high / 2:
        low = 0.0
    if high == low:
        low, high = min(0.0, low), max(high, 1.0)
    step = _round_step((high - low) / (_MAX_TICKS - 1))
    high = max(high, math.ceil(high / step - 1e-9) * step)
    return _multiples(step, low, high), lambda v: (v - low) / (high - low)


def _log_axis(values: npt.NDArray[np.float64]) -> tuple[list[float], _Place]:
    """Return the same for a logarithmic axis; what is not positive goes to its left end."""
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1.0, 10.0)
    low, high = math.log10(low), math.log10(high)
    if high - low < 0.1:
        low, high = low - 0.1, high + 0.1
    if high - low < _FEW_DECADES:
        step = _round_step((10**high - 10**low) / (_MAX_TICKS - 1))
        ticks = _multiples(step, 10**low, 10**high)
    else:
        powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        ticks = [10.0**power for power in powers]
        ticks = ticks[:: math.ceil(len(ticks) / _MAX_TICKS)]
    return ticks, lambda v: (np.log10(np.maximum(v, 10.0**low)) - low) / (high - low)


def _multiples(step: float, low: float, high: float) -> list[float]:
    """Return the multiples of `step` from `low` to `high`."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, ... times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(base * power for base in (1, 2, 5, 10) if base * power >= least * (1 - 1e-9))


def short(value: float) -> str:
    """Return a number in few characters: 1500 becomes 1.5k."""
    for unit, suffix in _SUFFIXES:
        if abs(value) >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"
