"""Plots of `context_switch.py`: tails of latencies, and what switching takes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from context_switch_run import Record
from evenflow.bench.plots import blank_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHARES = (0.1, 0.01, 0.001)  # of the values that are larger: P90, P99, P99.9
_MAX_POINTS = 2000


def draw(records: Mapping[str, Mapping[str, Record]], path: Path) -> None:
    """Draw a row for each case: TTFT, TBT, and the parts of the 99th percentile of TBT.

    Args:
        records: what was noted, by case and arm.
        path: of the picture.
    """
    figure = blank_figure(15, 4 * len(records))
    rows = figure.subplots(len(records), 3, squeeze=False)
    for (left, middle, right), (case, arms) in zip(rows, records.items(), strict=True):
        for axes, name in ((left, "ttft_s"), (middle, "tbt_s")):
            _tails(axes, {arm: getattr(record, name) for arm, record in arms.items()})
            axes.set(xlabel=f"{name[:-2].upper()} (s)", title=case)
        left.set(ylabel="share of values that are larger")
        left.legend(loc="lower left")
        _parts(right, arms)
    write_figure(figure, path)


def _tails(axes: Axes, values_by_arm: Mapping[str, Sequence[float]]) -> None:
    """Draw which share of the values is larger than each value."""
    for arm, values in values_by_arm.items():
        shares = np.geomspace(1 / len(values), 1, min(len(values), _MAX_POINTS))
        axes.plot(np.quantile(values, 1 - shares), shares, label=arm, linewidth=1.2)
    for share in _SHARES:
        axes.axhline(share, color="lightgray", linewidth=0.8, zorder=0)
    axes.set(xscale="log", yscale="log")


def _parts(axes: Axes, arms: Mapping[str, Record]) -> None:
    """Draw the 99th percentile of TBT with and without the times of switches."""
    whole = np.array([np.percentile(record.tbt_s, 99) for record in arms.values()]) * 1e3
    rest = np.array(
        [
            np.percentile(np.array(record.tbt_s) - np.array(record.stall_s), 99)
            for record in arms.values()
        ]
    )
    rest *= 1e3
    names = list(arms)
    axes.barh(names, rest, color="tab:blue", label="computing, and waiting for one's turn")
    axes.barh(names, whole - rest, left=rest, color="tab:red", label="steps held up by switches")
    axes.invert_yaxis()
    axes.set(xlabel="P99 of TBT (ms)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
