"""`evenflow trace fit` and `evenflow trace generate`: models of traces, and traces from models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from evenflow.bench.plots import require_matplotlib
from evenflow.bench.table import figure
from evenflow.bench.trace_plots import plot_model
from evenflow.cli.flags import FILE, NEW_FILE, flag, numbers, one_of
from evenflow.cli.trace_files import opened, report, rng_of, seed, skip_bad, trace_argument, wrote
from evenflow.workloads import generators
from evenflow.workloads.analysis import fit_traffic
from evenflow.workloads.analysis.fitting import WINDOW_S
from evenflow.workloads.analysis.model import LengthModel
from evenflow.workloads.datasets import SHAREGPT_OUTPUT, SHAREGPT_PROMPT
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces import write_trace
from evenflow.workloads.transforms import in_order, merged

if TYPE_CHECKING:
    from evenflow.workloads.analysis import Fit, TrafficModel

Kind = Literal["poisson", "bursts", "chat", "agents", "prefix-tree", "clients"]

_POSITIVE = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)
_SHAREGPT = generators.IndependentPairs(SHAREGPT_PROMPT, SHAREGPT_OUTPUT)
_QUANTITIES = {
    "gaps": "gap / mean gap of its window",
    "prompt_tokens": "prompt (tokens)",
    "output_tokens": "answer (tokens)",
    "think_s": "pause before a turn (s)",
    "tool_s": "of which tools (s)",
}
_ARRIVALS = {
    "num_windows": "windows",
    "num_windows_without_requests": "windows without requests",
    "rate_mean": "rate (sessions/s)",
    "rate_cv": "CV of the windows' rates",
    "cv_within_windows": "CV of gaps within windows",
    "gamma_shape_within_windows": "gamma shape within windows",
    "weibull_shape_within_windows": "Weibull shape within windows",
    "log_length_correlation": "correlation of log lengths, prompt and answer",
    "sessions": "sessions and lone requests",
    "turns_mean": "turns, mean",
    "one_turn_ratio": "share with one turn",
    "tenants": "tenants",
}
_PARAMETERS = ("shape", "median", "sigma", "exponent", "value")


@click.command(context_settings={"show_default": True})
@trace_argument
@flag("--window", click.FloatRange(min=1e-3), WINDOW_S, "Seconds of a window.", field="window_s")
@flag("--generate", _COUNT, None, "Draw so many requests from the model.", field="num")
@flag("--output", NEW_FILE, None, "Where to write them.")
@flag("--rate-factor", _POSITIVE, 1.0, "Multiply the rates; bursts keep their shape.")
@flag("--lengths", one_of(LengthModel), "recorded", "Where lengths are drawn from.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@flag("--plot", NEW_FILE, None, "Draw samples beside their fits as PNG.")
@seed
@skip_bad
def fit(path: Path, window_s: float, as_json: bool, skip_bad: bool, **flags: Any) -> None:
    """Fit models to TRACE as BurstGPT does, say how well they fit, and draw a new trace from them.

    The Kolmogorov-Smirnov distance is the greatest difference between the cumulative distributions;
    0 is perfect. Which prompts share prefixes is not part of the model.
    """
    if (flags["num"] is None) != (flags["output"] is None):
        raise click.UsageError("--generate and --output go together")
    if flags["plot"] is not None:
        require_matplotlib()
    rows = opened(path, skip_bad)
    fit_rng, draw_rng = rng_of(flags["seed"]).spawn(2)
    model = fit_traffic(in_order(rows), fit_rng, window_s=window_s)
    report(rows)
    if as_json:
        click.echo(json.dumps(model.as_dict(), indent=2))
    else:
        for table in _tables(model):
            Console().print(table)
    if flags["num"] is not None:
        stream = model.generate(
            draw_rng, rate_factor=flags["rate_factor"], lengths=flags["lengths"]
        )
        _write(flags["output"], stream, flags["num"])
    if flags["plot"] is not None:
        plot_model(model, flags["plot"])
        click.echo(f"wrote {flags['plot']}", err=True)


@click.command(context_settings={"show_default": True})
@click.argument("kind", type=one_of(Kind))
@click.argument("output", type=NEW_FILE)
@flag("--num", _COUNT, 1000, "Requests.")
@flag("--rate", _POSITIVE, 1.0, "Requests a second; of chat and agents, sessions a second.")
@flag("--burstiness", _POSITIVE, 1.0, "Gamma shape of the gaps: 1 Poisson, below 1 bursts.")
@click.option(
    "--tenants",
    multiple=True,
    callback=numbers(",", 1.0),
    help='Tenants and their shares of the rate: "a:2,b:1".',
)
@flag("--system-tokens", click.IntRange(min=0), None, "chat, agents: tokens that all begin with.")
@flag("--clients", FILE, None, "clients: ServeGen's file of arrivals, lengths beside it.")
@flag("--from", float, 0.0, "clients: seconds of the recording to begin at.", field="from_s")
@flag("--until", float, 86_400.0, "clients: seconds of the recording to end at.", field="until_s")
@seed
def generate(kind: Kind, output: Path, num: int, seed: int, **flags: Any) -> None:
    """Write a trace of KIND to OUTPUT.

    poisson and bursts have lone requests with the lengths of ShareGPT (bursts: --burstiness below
    1, by default 0.25), chat has conversations with pauses, agents have tool calls, prefix-tree has
    prompts that share three levels of prefixes, clients are those of a service in ServeGen.
    """
    rng = rng_of(seed)
    if kind == "clients":
        stream = _clients(rng, flags)
    else:
        shares = flags["tenants"] or {"": 1.0}
        streams = [
            _stream(kind, name, share / sum(shares.values()), stream_rng, flags)
            for (name, share), stream_rng in zip(
                shares.items(), rng.spawn(len(shares)), strict=True
            )
        ]
        stream = merged(*streams)
    _write(output, stream, num)


def _stream(
    kind: Kind, tenant: str, share: float, rng: np.random.Generator, flags: dict[str, Any]
) -> Iterator[WorkloadRequest]:
    """Return the requests of one tenant."""
    times_rng, rng = rng.spawn(2)
    burstiness = flags["burstiness"]
    if kind == "bursts" and burstiness == 1.0:
        burstiness = 0.25
    times = generators.burst_times(flags["rate"] * share, burstiness, times_rng)
    system = flags["system_tokens"]
    name = f"{kind} {tenant}".strip()
    match kind:
        case "chat":
            chat = generators.Conversations(system_tokens=system or 0)
            return generators.conversations(times, chat, rng, name=name, tenant=tenant)
        case "agents":
            agent = (
                generators.Agents() if system is None else generators.Agents(system_tokens=system)
            )
            return generators.agents(times, agent, rng, name=name, tenant=tenant)
        case "prefix-tree":
            return generators.prefix_tree_requests(
                times,
                _SHAREGPT,
                rng,
                level_tokens=(1024, 512, 512),
                branching=8,
                name=name,
                tenant=tenant,
            )
        case _:
            return generators.lone_requests(times, _SHAREGPT, rng, tenant=tenant)


def _clients(rng: np.random.Generator, flags: dict[str, Any]) -> Iterator[WorkloadRequest]:
    if flags["clients"] is None:
        raise click.UsageError("clients needs --clients FILE")
    mix = generators.ClientMix(flags["clients"])
    span = {"start_s": flags["from_s"], "end_s": flags["until_s"]}
    return mix.requests(rng, **span, rate_factor=flags["rate"] / mix.mean_rate(**span))


def _write(path: Path, stream: Iterator[WorkloadRequest], num: int) -> None:
    wrote(path, write_trace(path, islice(stream, num)))


def _tables(model: TrafficModel) -> tuple[Table, Table]:
    """Lay out arrivals and sessions, then the fitted distributions."""
    figures = model.as_dict()
    arrivals = Table(show_header=False, title=f"Windows of {figures['window_s']:g} s")
    arrivals.add_column()
    arrivals.add_column(justify="right")
    for key, title in _ARRIVALS.items():
        arrivals.add_row(title, figure(figures[key]))
    fits = Table()
    for title in ("", "model"):
        fits.add_column(title)
    for title in ("parameters", "mean", "KS distance", "p"):
        fits.add_column(title, justify="right")
    everything: dict[str, Sequence[Fit]] = {
        "gaps": model.gaps,
        "prompt_tokens": model.prompt,
        "output_tokens": model.output,
        "think_s": model.think_s,
        "tool_s": model.tool_s,
    }
    for key, title in _QUANTITIES.items():
        fits.add_section()
        for place, one in enumerate(everything[key]):
            fits.add_row(title if place == 0 else "", *_fit_cells(one))
    return arrivals, fits


def _fit_cells(one: Fit) -> tuple[str, ...]:
    values = one.as_dict()
    parameters = (f"{name} {figure(values[name])}" for name in _PARAMETERS if name in values)
    goodness = one.goodness
    distance, p_value = f"{goodness.distance:.3f}", f"{goodness.p_value:.2g}"
    return one.kind, ", ".join(parameters), figure(values["mean"]), distance, p_value
