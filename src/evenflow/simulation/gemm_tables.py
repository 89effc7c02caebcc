"""Matrix products by their shape, from a table that has many shapes but not all.

Y[m, n] = X[m, k] W[k, n]. Every measured (n, k) has a curve over m. A shape that is missing takes
the curve of the nearest measured one, scaled by the ratio of n * k: with few rows a product is as
fast as its weights are read, with many as its multiplications are done, and n * k counts both.
Nearest is what differs least in n and k together, so that neither side of the matrix gets much
longer or shorter than the one that was measured.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path

from evenflow.core.errors import ConfigError
from evenflow.execution.costs.interpolation import Curve, Range, weighted_sum
from evenflow.simulation.profile_tables import nearest_shape, read_table

logger = logging.getLogger(__name__)

Shape = tuple[int, int]
"""(n, k)."""


class GemmTables:
    """The products measured on one device.

    Args:
        directory: the folder of tables.
        gpu: the device, as the tables call it.
        dtype: of the operands, as the tables call it.

    Raises:
        ConfigError: there is no such table, or it has nothing of this dtype.
    """

    def __init__(self, directory: Path, gpu: str, dtype: str = "bfloat16") -> None:
        self._name = f"{dtype} products on {gpu}"
        points: defaultdict[Shape, list[tuple[int, float]]] = defaultdict(list)
        columns = ("n", "k", "m", "latency_ms")
        for n, k, m, latency_ms in read_table(directory, f"{gpu}_gemm", columns, {"dtype": dtype}):
            points[int(n), int(k)].append((int(m), float(latency_ms) * 1e-3))
        if not points:
            raise ConfigError(
                f"no {self._name} were measured",
                why=f"the table {gpu}_gemm has other dtypes only",
                fix="Choose bfloat16",
            )
        self._points = points
        self._scaled: dict[Shape, Shape] = {}

    def curve(self, n: int, k: int) -> Curve:
        """Return the seconds of a product by its rows."""
        nearest = (n, k)
        if nearest not in self._points:
            nearest = nearest_shape(self._points, (n, k))
            self._scaled[n, k] = nearest
        curve = Curve(self._points[nearest], Range(self._name, "rows"))
        scale = n * k / (nearest[0] * nearest[1])
        return weighted_sum([(scale, curve)], Range(self._name, "rows"))

    def warn_of_scaled(self) -> None:
        """Say which shapes had to be scaled, and from what, since the last time."""
        if self._scaled:
            logger.warning(
                "%s: not measured are the shapes (n, k) %s",
                self._name,
                "; ".join(f"{shape}, scaled from {near}" for shape, near in self._scaled.items()),
            )
            self._scaled = {}
