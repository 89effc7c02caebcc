"""Measured times as functions: exact where something was measured, sensible in between.

Between two measured points a time is a straight line. What takes time in a step is reading bytes
and multiplying numbers, and both grow in proportion to tokens, requests or pairs of tokens, on top
of a constant. For such sums a line is exact, and where a kernel climbs in stairs, the points that
were measured on the stairs are kept. (Lines between logarithms would bend the sum of a constant and
a slope by some per cent.)

Below the first point a time is that of the first: there the constant is all there is. Beyond the
last point it grows in proportion, because there the constant is lost in the rest; a warning says
so, once per table.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Value = TypeVar("Value", float, Floats)

logger = logging.getLogger(__name__)


class Range:
    """How far a table was measured in one direction; complains once about use beyond that.

    Args:
        table: what the table tells.
        quantity: what it is a function of.
    """

    def __init__(self, table: str, quantity: str) -> None:
        self._table = table
        self._quantity = quantity
        self._has_warned = False

    def warn(self, value: float, last: float) -> None:
        """Say that the table ends at `last` and is asked about `value`, unless that was said."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s was measured up to %.0f %s; times beyond are extrapolated in proportion, "
                "first at %.0f",
                self._table,
                last,
                self._quantity,
                value,
            )


class Curve:
    """A measured function of one quantity.

    Args:
        points: (argument, value), at least one; arguments are positive and distinct.
        measured: complains about use beyond the last point.
    """

    def __init__(self, points: Iterable[tuple[float, float]], measured: Range) -> None:
        ordered = sorted(points)
        self.arguments = [argument for argument, _ in ordered]
        self._values = [value for _, value in ordered]
        self._last = self.arguments[-1]
        self._measured = measured
        steps = zip(
            self.arguments, self.arguments[1:], self._values, self._values[1:], strict=False
        )
        self._points = np.array([self.arguments, self._values])
        # A slope of nothing after the last point: it is met exactly there, and only there.
        self._slopes = [(y1 - y0) / (x1 - x0) for x0, x1, y0, y1 in steps] + [0.0]

    def __call__(self, argument: float) -> float:
        """Return the value at `argument`."""
        if argument > self._last:
            self._measured.warn(argument, self._last)
            return self._values[-1] * argument / self._last
        index = bisect_right(self.arguments, argument) - 1
        if index < 0:
            return self._values[0]
        return self._values[index] + self._slopes[index] * (argument - self.arguments[index])

    def values_at(self, arguments: Floats) -> Floats:
        """Return the values at several arguments, in ascending order."""
        values: Floats = np.interp(arguments, *self._points)
        if arguments[-1] > self._last:
            first = int(np.searchsorted(arguments, self._last, "right"))
            self._measured.warn(float(arguments[first]), self._last)
            values[first:] = self._values[-1] * arguments[first:] / self._last
        return values


class Surface:
    """A measured function of two quantities: a curve for each measured value of the first.

    The curves need not have the same arguments: the longest contexts fit the smallest batches only.

    Args:
        points: (row, column, value).
        rows: complains about use beyond the last row.
        columns: the same for the columns.
    """

    def __init__(
        self, points: Iterable[tuple[float, float, float]], rows: Range, columns: Range
    ) -> None:
        by_row: defaultdict[float, list[tuple[float, float]]] = defaultdict(list)
        for row, column, value in points:
            by_row[row].append((column, value))
        self.rows = sorted(by_row)
        self._curves = [Curve(by_row[row], columns) for row in self.rows]
        self._measured = rows

    def __call__(self, row: float, column: float) -> float:
        """Return the value at (row, column)."""
        return self._between_rows(row, Curve.__call__, column)

    def values_at(self, row: float, columns: Floats) -> Floats:
        """Return the values in one row at several columns, in ascending order."""
        return self._between_rows(row, Curve.values_at, columns)

    def _between_rows(
        self, row: float, value_on: Callable[[Curve, Value], Value], column: Value
    ) -> Value:
        rows, curves = self.rows, self._curves
        upper = bisect_right(rows, row)
        if upper == 0:
            return value_on(curves[0], column)
        lower = rows[upper - 1]
        value = value_on(curves[upper - 1], column)
        if row == lower:
            return value
        if upper == len(rows):
            self._measured.warn(row, lower)
            return value * row / lower
        share = (row - lower) / (rows[upper] - lower)
        return value + share * (value_on(curves[upper], column) - value)


def weighted_sum(parts: Iterable[tuple[float, Curve]], measured: Range) -> Curve:
    """Return the sum of factor times curve, exactly that wherever all of them were measured."""
    parts = list(parts)
    last = min(curve.arguments[-1] for _, curve in parts)
    arguments = {x for _, curve in parts for x in curve.arguments if x <= last}
    return Curve(
        ((x, sum(factor * curve(x) for factor, curve in parts)) for x in arguments), measured
    )
