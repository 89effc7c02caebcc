"""Plots of traces and of the models fitted to them. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evenflow.bench.plots import blank_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from evenflow.workloads.analysis import Fit, TraceSummary, TrafficModel
    from evenflow.workloads.distributions import Floats

_NUM_BINS = 60
_NUM_POINTS = 400
_NUM_SHOWN_FITS = 3


def plot_summary(summary: TraceSummary, path: Path) -> None:
    """Draw rate, burstiness and concurrency over time, and the distributions of lengths."""
    figure = blank_figure(14, 7)
    axes = figure.subplots(2, 3)
    windows = summary.windows
    hours = windows.index * windows.window_s / 3600
    per_window = np.zeros(int(windows.index[-1]) + 1)
    per_window[windows.index.astype(int)] = windows.num_requests / windows.window_s
    axes[0][0].stairs(per_window, np.arange(len(per_window) + 1) * windows.window_s / 3600)
    axes[0][0].set(xlabel="time (h)", ylabel="requests per second", ylim=(0, None))
    axes[0][1].plot(hours, windows.cv, ".", markersize=3, label="CV of gaps")
    axes[0][1].plot(hours, windows.gamma_shape, ".", markersize=3, label="gamma shape")
    axes[0][1].axhline(1.0, color="black", linewidth=0.8, label="Poisson")
    axes[0][1].set(xlabel="time (h)", ylabel=f"within {windows.window_s:g} s", yscale="log")
    axes[0][1].legend()
    times, running = zip(*summary.num_running, strict=True)
    axes[0][2].step([time_s / 3600 for time_s in times], running, where="post")
    axes[0][2].set(xlabel="time (h)", ylabel="most requests under way (estimated)", ylim=(0, None))
    _histogram(axes[1][0], summary.counts["prompt_tokens"], "prompt (tokens)")
    _histogram(axes[1][1], summary.counts["output_tokens"], "answer (tokens)")
    _histogram(axes[1][2], summary.counts["turns"], "turns of a session")
    write_figure(figure, path)


def plot_model(model: TrafficModel, path: Path) -> None:
    """Draw samples of gaps, lengths and pauses beside the distributions fitted to them."""
    quantities = [
        ("gap / mean gap of its window", model.windows.unit_gaps, model.gaps),
        ("prompt (tokens)", model.pairs[:, 0].astype(float), model.prompt),
        ("answer (tokens)", model.pairs[:, 1].astype(float), model.output),
        ("pause before a turn (s)", model.pauses[:, 0], model.think_s),
    ]
    figure = blank_figure(14, 7)
    for axes, (name, values, fits) in zip(figure.subplots(2, 2).flat, quantities, strict=True):
        _distributions(axes, name, values[values > 0], fits)
    write_figure(figure, path)


def _histogram(axes: Axes, counts: Mapping[float, int], name: str) -> None:
    """Draw counted values on a logarithmic axis."""
    values = np.array(list(counts), dtype=np.float64)
    edges = np.geomspace(max(values.min(), 1.0), values.max() + 1, _NUM_BINS)
    axes.hist(values, bins=edges.tolist(), weights=list(counts.values()))
    axes.set(xlabel=name, ylabel="count", xscale="log")


def _distributions(axes: Axes, name: str, values: Floats, fits: Sequence[Fit]) -> None:
    """Draw cumulative distributions; a title says that there is nothing to draw."""
    axes.set(xlabel=name, ylabel="share of at most that")
    if not len(values) or not fits:
        axes.set_title("none")
        return
    axes.ecdf(values, color="black", label=f"seen ({len(values)})")
    points = np.geomspace(max(values.min(), values.max() * 1e-6), values.max(), _NUM_POINTS)
    for fit in fits[:_NUM_SHOWN_FITS]:
        label = f"{fit.kind}, distance {fit.goodness.distance:.3f}"
        axes.plot(points, fit.distribution.cdf(points), linewidth=1, label=label)
    axes.set(xscale="log")
    axes.legend()
