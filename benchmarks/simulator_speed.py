"""How fast the simulator is, how much memory it takes, and how it compares with Vidur.

Simulated is Llama-3-8B on one A100 with 256 running requests, 2,048 tokens a step and blocks of 16;
its requests come in bursts (gamma gaps, coefficient of variation 1.4) and have the lengths of
ShareGPT's turns. It can serve some 17 requests/s.

Vidur (PyPI) is installed into a virtual environment of its own, and left out if it is not there, by

    python benchmarks/simulator_speed.py --install vidur

Both play the same file with the same limits, chunked prefills, no prefix cache, and tables of the
same step times (`vidur_peer.py`), in processes of their own, in turns. Vidur writes no metrics, no
plots and no traces, which is its fastest; evenflow keeps what it always does. evenflow's time is
that of reading the file and simulating; Vidur's is that of its event loop alone, without reading
the file, training its predictor or loading it. Imports count for neither.

The last line on stdout is one JSON object:
    requests_per_s: simulated requests per second of 100,000 (of fewer with --quick), at RATE
        arrivals/s with the roofline's step times.
    requests_per_s_table: the same with tables.
    seconds: what those 100,000 took.
    peak_rss_mb: most memory in use meanwhile.
    ratio_vidur: Vidur's time divided by evenflow's at RATE; median over rounds.
    ratio_vidur_by_rate: the same at several rates.
    ratio_vidur_roofline: the same at RATE with the roofline instead of tables.
    ratio_vidur_recording: the same at RATE with the metrics Vidur keeps by default; still no plots.
    ratio_vidur_whole: the same of whole processes, with imports, Vidur's predictor being loaded.
    vidur_training_s: what its predictor takes when nothing is in its cache; with its own grid of
        hyperparameters, of which one point is used here, it takes many times longer.
    vidur_requests_per_s: by rate.
    vidur_rss_mb: most memory that Vidur took at RATE.
    agreement: by figure (end of the last request, mean time to first token and to the last),
        Vidur's divided by evenflow's at RATE: that both simulate the same.
    num_requests: of the runs of evenflow alone and of those beside Vidur.
    rss_mb: by number of requests, most memory in use while so many were streamed from a generator
        (short answers, so that it does not take long). What grows are the columns of the result.
        Not with --quick.
    million_s: what the million took.

Usage: python benchmarks/simulator_speed.py [--quick] [--rounds N] [--requests N] [--rates R ...]
       python benchmarks/simulator_speed.py --install vidur
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from evenflow.config import load_config
from evenflow.execution.costs import CostModel, MeasuredCosts, MeasuredStep, StepShape
from evenflow.simulation.instance import SimulationSettings
from evenflow.simulation.roofline import RooflineCosts
from evenflow.simulation.shapes import load_device, load_model, num_kv_blocks
from evenflow.simulation.simulator import simulate
from evenflow.workloads.distributions import Lengths, LogNormal
from evenflow.workloads.generators import IndependentPairs, LengthPairs, burst_times, lone_requests
from evenflow.workloads.generators.sessions import CHAT_LENGTHS
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces import iter_trace
from vidur_driver import peak_rss_mb
from vidur_peer import KV_STEP, Vidur, install, interpreter, trace_row

RATE = 8.0
RATES = (1.0, 4.0, RATE, 12.0, 16.0)
BURSTINESS = 0.5
MANY, COMPARED = 100_000, 5_000
QUICK_MANY, QUICK_COMPARED = 4_000, 2_000
STREAMED = (100_000, 1_000_000)
STREAM_RATE = 80.0

# Prompt and answer together fit into the 4,096 tokens that Vidur allows the model.
CHAT = IndependentPairs(
    Lengths(CHAT_LENGTHS.prompt.distribution, high=2048),
    Lengths(CHAT_LENGTHS.output.distribution, high=2048),
)
SHORT = IndependentPairs(CHAT.prompt, Lengths(LogNormal(median=8.0, sigma=0.5), high=32))

MODEL, DEVICE = load_model("llama-3-8b"), load_device("a100")
SETTINGS = SimulationSettings(
    num_blocks=num_kv_blocks(MODEL, DEVICE, tp=1, pp=1, block_size=16),
    max_model_len=4096,
    enable_prefix_caching=False,
)


@dataclass(frozen=True)
class Run:
    """One run of a simulator; the fields of `vidur_driver.py`."""

    run_s: float
    rss_mb: float
    virtual_s: float
    mean_ttft_s: float
    mean_e2e_s: float
    whole_s: float = 0.0
    setup_s: float = 0.0
    import_s: float = 0.0


def workload(rate: float, lengths: LengthPairs) -> Iterator[WorkloadRequest]:
    """Return endless requests in bursts."""
    times_rng, lengths_rng = np.random.default_rng(0).spawn(2)
    return lone_requests(burst_times(rate, BURSTINESS, times_rng), lengths, lengths_rng)


def write_trace(path: Path, requests: Iterable[WorkloadRequest]) -> Path:
    """Write a trace whose columns have the names of both simulators."""
    with path.open("w", encoding="ascii", newline="") as file:
        writer = None
        for request in requests:
            times = (request.arrival_s, request.num_prompt_tokens, request.num_output_tokens)
            columns = ("arrival_s", "num_prompt_tokens", "num_output_tokens")
            row = {**dict(zip(columns, times, strict=True)), **trace_row(*times)}
            if writer is None:
                writer = csv.DictWriter(file, row.keys())
                writer.writeheader()
            writer.writerow(row)
    return path


def measured_steps() -> list[MeasuredStep]:
    """Return step times on a grid that both simulators make their tables of."""
    costs = RooflineCosts(MODEL, DEVICE)
    few = (1, 2, 4, 8, 16, 24)
    chunks = (*few, *range(32, SETTINGS.max_num_batched_tokens + 1, 32))
    keys = range(KV_STEP, SETTINGS.max_model_len + 1, KV_STEP)
    batches = (*few, *range(32, SETTINGS.max_num_seqs + 1, 32))
    shapes = [StepShape(((new, 0),)) for new in chunks]
    shapes += [StepShape(((new, num - new),)) for new, num in product(chunks, keys) if num > new]
    shapes += [StepShape((), batch, batch * num) for batch, num in product(batches, keys)]
    return [MeasuredStep(shape, costs.step_s(shape)) for shape in shapes]


def cost_model(kind: str) -> CostModel:
    """Return the step times, as a formula or as tables."""
    if kind == "roofline":
        return RooflineCosts(MODEL, DEVICE)
    return MeasuredCosts(measured_steps(), "a roofline")


def run_trace(path: Path, kind: str) -> Run:
    """Simulate a file."""
    costs = cost_model(kind)
    began_s = time.perf_counter()
    return _run(iter_trace(path), costs, began_s)


def run_stream(num_requests: int) -> Run:
    """Simulate requests with short answers as they are generated."""
    requests = islice(workload(STREAM_RATE, SHORT), num_requests)
    return _run(requests, cost_model("roofline"), time.perf_counter())


def _run(requests: Iterable[WorkloadRequest], costs: CostModel, began_s: float) -> Run:
    result = simulate(requests, SETTINGS, costs)
    return Run(
        run_s=time.perf_counter() - began_s,
        rss_mb=peak_rss_mb(),
        virtual_s=result.duration_s,
        mean_ttft_s=float(result.ttft_s.mean()),
        mean_e2e_s=float((result.end_s - result.arrival_s).mean()),
    )


def alone(function: Callable[..., Run], *args: Any) -> Run:
    """Call a function in a new process."""
    context = multiprocessing.get_context("spawn")
    began_s = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        run = pool.submit(function, *args).result()
    return Run(**{**vars(run), "whole_s": time.perf_counter() - began_s})


def compare(
    vidur: Vidur, folder: Path, rates: list[float], num_requests: int, rounds: int
) -> dict[tuple[str, float], list[Run]]:
    """Run both simulators in turns.

    Returns:
        by simulator and rate, a run for each round. There are two variants of both at `RATE`. The
        predictor is trained in "vidur training".
    """
    traces = {
        rate: write_trace(folder / f"{rate:g}.csv", islice(workload(rate, CHAT), num_requests))
        for rate in {RATE, *rates}
    }
    variants: dict[str, Callable[[Path], Run]] = {
        "evenflow": lambda path: alone(run_trace, path, "table"),
        "vidur": lambda path: Run(**vidur.run(path)),
        "evenflow roofline": lambda path: alone(run_trace, path, "roofline"),
        "vidur recording": lambda path: Run(**vidur.run(path, is_recording=True)),
    }
    first = write_trace(folder / "first.csv", islice(workload(RATE, CHAT), 100))
    runs = defaultdict(list, {("vidur training", RATE): [Run(**vidur.run(first))]})
    for _ in range(rounds):
        for rate, name in product(sorted(traces), variants):
            if rate == RATE or " " not in name:
                run = variants[name](traces[rate])
                runs[name, rate].append(run)
                print(f"{name} at {rate:g}/s: {run.run_s:.1f} s", file=sys.stderr)
    return runs


def comparison(runs: dict[tuple[str, float], list[Run]], num_requests: int) -> dict[str, object]:
    """Return the figures of `compare`."""

    def ratio(theirs: str, ours: str, rate: float = RATE, field: str = "run_s") -> float:
        pairs = zip(runs[theirs, rate], runs[ours, rate], strict=True)
        return round(float(median(getattr(a, field) / getattr(b, field) for a, b in pairs)), 4)

    rates = [rate for name, rate in runs if name == "vidur"]
    by_rate = {f"{rate:g}": ratio("vidur", "evenflow", rate) for rate in rates}
    figures = ("virtual_s", "mean_ttft_s", "mean_e2e_s")
    return {
        "ratio_vidur": by_rate[f"{RATE:g}"],
        "ratio_vidur_by_rate": by_rate,
        "ratio_vidur_roofline": ratio("vidur", "evenflow roofline"),
        "ratio_vidur_recording": ratio("vidur recording", "evenflow"),
        "ratio_vidur_whole": ratio("vidur", "evenflow", field="whole_s"),
        "vidur_training_s": round(runs["vidur training", RATE][0].setup_s, 1),
        "vidur_requests_per_s": {
            f"{rate:g}": round(num_requests / median(run.run_s for run in runs["vidur", rate]))
            for rate in rates
        },
        "vidur_rss_mb": round(fmean(run.rss_mb for run in runs["vidur", RATE])),
        "agreement": {name: ratio("vidur", "evenflow", field=name) for name in figures},
    }


def show(figures: dict[str, object]) -> None:
    """Print a table on stderr."""
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console(stderr=True, width=120).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round, under 50 s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=COMPARED, help="of the runs beside Vidur")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES, help="arrivals/s there")
    parser.add_argument("--install", choices=["vidur"])
    args = parser.parse_args()
    cache = load_config({}).config.paths.cache
    if args.install:
        install(cache)
        return
    if args.quick:
        args.rounds, args.requests, args.rates = 1, QUICK_COMPARED, []
    num_many = QUICK_MANY if args.quick else MANY
    python = interpreter(cache)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = write_trace(folder / "many.csv", islice(workload(RATE, CHAT), num_many))
        many = {kind: alone(run_trace, trace, kind) for kind in ("roofline", "table")}
        figures: dict[str, object] = {
            "requests_per_s": round(num_many / many["roofline"].run_s),
            "requests_per_s_table": round(num_many / many["table"].run_s),
            "seconds": round(many["roofline"].run_s, 1),
            "peak_rss_mb": round(many["roofline"].rss_mb),
            "ratio_vidur": None,
            "num_requests": {"alone": num_many, "beside_vidur": args.requests},
        }
        if python is None:
            print("Vidur is not installed; see --install", file=sys.stderr)
        else:
            vidur = Vidur(python, folder, SETTINGS)
            vidur.write_profiles(MODEL, measured_steps())
            runs = compare(vidur, folder, args.rates, args.requests, args.rounds)
            figures |= comparison(runs, args.requests)
    if not args.quick:
        streamed = {num: alone(run_stream, num) for num in STREAMED}
        figures["rss_mb"] = {num: round(run.rss_mb) for num, run in streamed.items()}
        figures["million_s"] = round(streamed[STREAMED[-1]].run_s, 1)
    show(figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
