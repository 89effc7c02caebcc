"""`evenflow capacity`: the highest rate at which a simulated server meets its objectives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from evenflow.bench.simulated.load import Load
from evenflow.bench.simulated.probes import MIN_STEADY_RATIO, Answer, Probe, search
from evenflow.bench.simulated.run import Measures, SimulatedRun, run_simulation
from evenflow.bench.simulated.variant import Variant
from evenflow.bench.table import figure
from evenflow.cli.flags import NEW_FILE, flag, switch
from evenflow.cli.simulate import progress_bar
from evenflow.cli.simulate_options import load_of, measures_of, simulation_options, variants
from evenflow.core.errors import ConfigError
from evenflow.core.wording import counted


@click.command(context_settings={"show_default": True})
@simulation_options
@flag("--slo-quantile", float, 0.9, "Share of the requests that has to meet all objectives.")
@flag("--tolerance", float, 0.05, "How exact the answer is to be, as a ratio of rates.")
@click.option("--save-result", type=NEW_FILE, help="Write answers and probes as JSON.")
@switch("--no-progress", "Show no progress bar.")
def capacity(trace: str, **flags: Any) -> None:
    """Find the highest request rate at which TRACE is served within --slo.

    TRACE is a file of requests or a generator, as of `evenflow simulate`. Rates are doubled from
    --request-rate (or the recorded rate) until the objectives are missed, and then bisected.
    """
    if not flags["slo"]:
        raise ConfigError("capacity needs objectives", fix="Give --slo ttft:500,tpot:50")
    load = load_of(trace, flags)
    measures = measures_of(flags)
    measures = replace(measures, percentiles=(*measures.percentiles, 100 * flags["slo_quantile"]))
    answers = {}
    for label, variant in variants(flags).items():
        devices = counted(variant.num_devices, "device")
        click.echo(f"{label}: {variant.model_name} on {variant.device_name}, {devices}")
        answers[label] = _search(variant, load, measures, flags)
        click.echo(_words(answers[label], variant, load))
    if flags["save_result"] is not None:
        _save(flags["save_result"], answers)


def _search(variant: Variant, load: Load, measures: Measures, flags: Mapping[str, Any]) -> Answer:
    """Search, and print every rate that is tried."""
    with progress_bar(load.num_requests, is_shown=not flags["no_progress"]) as bar:

        def run_at(rate: float) -> SimulatedRun:
            return run_simulation(
                replace(variant, request_rate=rate),
                load,
                measures,
                on_progress=partial(bar, f"{rate:.3g} requests/s", 0),
            )

        return search(
            run_at,
            load,
            quantile=flags["slo_quantile"],
            tolerance=flags["tolerance"],
            start_rate=flags["request_rate"],
            on_probe=_show_probe,
        )


def _show_probe(probe: Probe) -> None:
    click.echo(
        f"  {probe.rate:9.4g} requests/s  {'met   ' if probe.is_met else 'missed'}  "
        f"{100 * probe.attainment_ratio:5.1f} % good  TTFT {figure(probe.ttft_ms)} ms  "
        f"TPOT {figure(probe.tpot_ms)} ms  {probe.output_throughput:.0f} tok/s"
    )


def _words(answer: Answer, variant: Variant, load: Load) -> str:
    """Return the answer in words, with what it may not be trusted in."""
    rate, refused = answer.capacity.rate, answer.capacity.refused_rate
    if rate is None:
        return (
            f"  no rate: even {refused:.3g} requests/s, where requests hardly meet, miss the "
            "objectives. Loosen --slo, or use more or faster devices."
        )
    if refused is None:
        return (
            f"  at least {rate:.4g} requests/s: {counted(load.num_requests, 'request')} are too "
            "few to find the limit, for at this rate all come before the first is answered. "
            "Give a longer trace, or a higher --limit."
        )
    text = f"  {rate:.4g} requests/s"
    if variant.num_devices > 1:
        text += f", {rate / variant.num_devices:.4g} per device"
    best = answer.best
    if best is not None and best.steady_ratio < MIN_STEADY_RATIO:
        needed = load.num_requests * MIN_STEADY_RATIO / best.steady_ratio
        text += (
            "; but it is bounded by the trace's length: arrivals last only "
            f"{best.steady_ratio:.1f} times as long as a request. Some {needed:.0f} requests "
            "would do."
        )
    return text


def _save(path: Path, answers: Mapping[str, Answer]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {label: answer.to_json() for label, answer in answers.items()}
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    click.echo(f"wrote {path}", err=True)
