"""Plots of one run and of several. Needs matplotlib (`pip install evenflow[plot]`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evenflow.bench.compare import Comparison, label
from evenflow.bench.metrics import concurrency, itls_s, tokens_per_second, ttft_s
from evenflow.core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evenflow.workloads.client import RequestRecord

_NUM_BINS = 60
_COLORS = {"better": "tab:green", "worse": "tab:red", "same": "tab:gray", None: "tab:gray"}


def plot_run(records: Sequence[RequestRecord], path: Path) -> None:
    """Draw the distributions of TTFT and ITL, and throughput and concurrency over time."""
    figure = blank_figure(11, 7)
    axes = figure.subplots(2, 2)
    done = [record for record in records if record.failure is None]
    _histogram(axes[0][0], [ttft_s(record) * 1e3 for record in done], "TTFT (ms)")
    gaps = [gap * 1e3 for record in done for gap in itls_s(record)]
    _histogram(axes[0][1], gaps, "ITL (ms)")
    throughput = tokens_per_second(done)
    axes[1][0].stairs(throughput)
    axes[1][0].set(xlabel="time (s)", ylabel="output tokens per second", ylim=(0, None))
    starts, ends = (np.array([getattr(r, name) for r in done]) for name in ("start_s", "end_s"))
    axes[1][1].step(*concurrency(starts, ends), where="post")
    axes[1][1].set(xlabel="time (s)", ylabel="concurrent requests", ylim=(0, None))
    write_figure(figure, path)


def plot_timeline(records: Sequence[RequestRecord], path: Path) -> None:
    """Draw each request as a bar: waiting in the client, up to the first token, and after it."""
    figure = blank_figure(11, min(4 + 0.05 * len(records), 40))
    axes = figure.subplots()
    rows = np.arange(len(records))
    due, start, end = (
        np.array([getattr(record, name) for record in records])
        for name in ("due_s", "start_s", "end_s")
    )
    first = start + [ttft_s(record) for record in records]
    failed = np.array([record.failure is not None for record in records])
    for chosen, begin, until, color, name in (
        (rows >= 0, due, start, "lightgray", "waiting in the client"),
        (~failed, start, first, "tab:orange", "up to the first token"),
        (~failed, first, end, "tab:blue", "further tokens"),
        (failed, start, end, "tab:red", "failed"),
    ):
        if chosen.any():
            widths = (until - begin)[chosen]
            axes.barh(rows[chosen], widths, left=begin[chosen], color=color, label=name)
    axes.invert_yaxis()
    axes.set(xlabel="time (s)", ylabel="request")
    axes.legend(loc="upper right")
    write_figure(figure, path)


def plot_comparison(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw the ratio to the baseline of every figure, run by run."""
    num_others = len(comparisons[0].ratios)
    figure = blank_figure(5 * num_others + 3, 0.3 * len(comparisons) + 1.5)
    all_axes = figure.subplots(1, num_others, sharey=True, squeeze=False)[0]
    for index, axes in enumerate(all_axes):
        known = [(c.metric, c.ratios[index], c.verdicts[index]) for c in comparisons]
        known = [entry for entry in known if entry[1] is not None]
        colors = [_COLORS[verdict] for _, _, verdict in known]
        axes.barh([metric for metric, _, _ in known], [r for _, r, _ in known], color=colors)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(xlabel=f"{label(index + 1)} / A (green is better)")
    all_axes[0].invert_yaxis()
    write_figure(figure, path)


def _histogram(axes: Axes, values: Sequence[float], name: str) -> None:
    """Draw a distribution with its median and 99th percentile."""
    axes.set(xlabel=name, ylabel="count")
    if not values:
        return
    axes.hist(values, bins=_NUM_BINS)
    for percentile, style in ((50, "-"), (99, "--")):
        value = float(np.percentile(values, percentile))
        text = f"p{percentile} = {value:.1f}"
        axes.axvline(value, color="black", linestyle=style, linewidth=0.9, label=text)
    axes.legend()


def require_matplotlib() -> None:
    """Raise before a long run what would otherwise be raised after it.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("plots need matplotlib", fix="pip install 'evenflow[plot]'")


def blank_figure(width: float, height: float) -> Figure:
    """Make a figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
