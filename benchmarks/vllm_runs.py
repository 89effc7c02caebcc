"""The simulator beside three measured runs of a real vLLM, for `simulator_validation.py`.

Each run is 300 ShareGPT prompts at 10 requests/s, answered by vLLM 0.19 (from LLMServingSim's
benchmark). Step times are sums of vLLM's layer times on the same device; nothing is fitted to the
runs. What had to be known about each server, and where it can be read:

RTX 4090, Llama-3.1-8B
    2,587 KV blocks: of all numbers up to 4,000 the only one for which every `kv_cache_pct` of the
    time series is a whole number of blocks. (The run's published record says 2,588; one is vLLM's
    null block.) 256 seats and a budget of 2,048 tokens by that record; at most 49 requests ran, so
    the seats do not matter.
RTX PRO 6000, Llama-3.1-8B
    128 seats: `running` stands at 128 whenever anybody waits. Memory is not at its limit.
RTX PRO 6000, Qwen3-30B-A3B
    Two replicas on two devices that share their experts, 128 seats each, by the published record;
    in the series `running` stands at 256. They are simulated as one engine in lockstep. Their link
    is in no table. LLMServingSim measured NCCL between two such cards twice: 13 us and 15.9 GB/s on
    2026-09-08 (e08dc38, profiler/perf/RTXPRO6000/hardware.yaml), and 10 us and 30 GB/s later, after
    a change to the host's settings. The earlier is used; the run is older than both. Waiting times
    hang on that: with the later figures TPOT comes out 10 % and mean TTFT 46 % too short.

The published records are bench/examples/*/*/vllm/meta.json of LLMServingSim at 5daddb2, and for the
RTX 4090 bench/results/llama-3.1-8b-rtx4090/meta.json at da26736.

`arrival_s` in the data is when the engine saw the request, so TTFT counts from there, and not from
the client. vLLM admits a prompt if it fits as a whole and keeps nothing back for those who run;
evenflow's own policies do, so a policy that admits like vLLM is simulated. Two things that vLLM
does are not: it plans a step while the one before runs, so a request joins one step later than
here, and it pads decode batches to the sizes of its CUDA graphs.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evenflow.bench.plots import blank_figure, write_figure
from evenflow.core.request import RequestView
from evenflow.execution.costs import CostModel
from evenflow.fairness.tenants import TenantDirectory
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.policies.fcfs import Fcfs
from evenflow.scheduling.policy import AdmissionView
from evenflow.scheduling.scheduler import Scheduler
from evenflow.simulation.instance import SimulationSettings
from evenflow.simulation.layer_tables import layer_table_costs, load_layer_tables
from evenflow.simulation.result import SimulationResult
from evenflow.simulation.shapes import LinkShape, load_device, load_model, num_kv_blocks
from evenflow.simulation.simulator import simulate
from evenflow.workloads.request import WorkloadRequest

Floats = npt.NDArray[np.float64]
Comparison = dict[str, tuple[float, float, float]]
"""(measured, simulated, relative error) by metric."""

NCCL_LINK = LinkShape(bytes_per_s=15.9e9, latency_s=13.2e-6)


@dataclass(frozen=True)
class Setup:
    """A server that was measured, in the words of the data and in ours."""

    gpu: str
    table_model: str
    model: str
    device: str
    max_num_seqs: int
    num_blocks: int | None = None  # as many as fit
    num_replicas: int = 1

    @property
    def name(self) -> str:
        """What the run is called in reports."""
        return f"{self.gpu} {self.table_model}"

    def costs(self, directory: Path) -> CostModel:
        """Return its step times, from the tables in a folder."""
        tables = load_layer_tables(directory, self.gpu, self.table_model)
        return layer_table_costs(
            tables, load_model(self.model), num_replicas=self.num_replicas, link=NCCL_LINK
        )

    def settings(self) -> SimulationSettings:
        """Return the engine to simulate."""
        blocks = self.num_blocks or num_kv_blocks(load_model(self.model), load_device(self.device))
        return VllmSettings(
            num_blocks=blocks * self.num_replicas,
            max_num_seqs=self.max_num_seqs * self.num_replicas,
            max_num_batched_tokens=2048 * self.num_replicas,
        )


SETUPS = (
    Setup("RTX4090", "Llama-3.1-8B", "llama-3.1-8b", "rtx-4090", 256, num_blocks=2587),
    Setup("RTXPRO6000", "Llama-3.1-8B", "llama-3.1-8b", "rtx-pro-6000", 128),
    Setup(
        "RTXPRO6000",
        "Qwen3-30B-A3B-Instruct-2507",
        "qwen-3-30b-a3b",
        "rtx-pro-6000",
        128,
        num_replicas=2,
    ),
)


class VllmAdmission(Fcfs):
    """First come, first served, with vLLM's rule at the door."""

    def admit(self, request: RequestView, memory: AdmissionView) -> bool:
        """Admit when the whole prompt fits."""
        return memory.num_needed_blocks <= memory.num_available_blocks


@dataclass(frozen=True, kw_only=True)
class VllmSettings(SimulationSettings):
    """An engine with vLLM's rule at the door."""

    def build_scheduler(self, directory: TenantDirectory | None = None) -> Scheduler:
        """Build the scheduler with its KV memory."""
        return Scheduler(
            VllmAdmission(),
            KVCacheManager(self.num_blocks, self.block_size),
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            directory=directory,
        )


def validate_vllm(directory: Path, plots: Path | None = None) -> dict[str, Comparison]:
    """Simulate the measured runs; return the comparison by run.

    Args:
        directory: the folder of tables and runs.
        plots: where to draw the simulated over the measured curves, if anywhere.
    """
    measured = read_runs(directory, "vllm_measured_requests")
    series = read_runs(directory, "vllm_measured_timeseries")
    comparisons, results = {}, {}
    for setup in SETUPS:
        run = measured[setup.gpu, setup.table_model]
        requests = [
            WorkloadRequest(num_prompt_tokens=int(i), num_output_tokens=int(o), arrival_s=float(a))
            for i, o, a in zip(run["input_toks"], run["output_toks"], run["arrival_s"], strict=True)
        ]
        requests.sort(key=lambda request: request.arrival_s)
        result = simulate(requests, setup.settings(), setup.costs(directory), log_steps=True)
        results[setup.name] = result
        comparisons[setup.name] = compare(run, result)
    if plots is not None:
        draw({setup.name: series[setup.gpu, setup.table_model] for setup in SETUPS}, results, plots)
    return comparisons


def read_runs(directory: Path, name: str) -> dict[tuple[str, str], dict[str, Floats]]:
    """Return the columns of each run in a file, by (device, model)."""
    runs: dict[tuple[str, str], defaultdict[str, list[float]]] = {}
    with gzip.open(directory / f"{name}.csv.gz", "rt", newline="") as file:
        for row in csv.DictReader(file):
            columns = runs.setdefault((row.pop("gpu"), row.pop("model")), defaultdict(list))
            for column, value in row.items():
                columns[column].append(float(value))
    return {
        run: {column: np.array(values) for column, values in columns.items()}
        for run, columns in runs.items()
    }


def compare(run: dict[str, Floats], result: SimulationResult) -> Comparison:
    """Return measured, simulated and relative error of each metric."""
    measured = metrics(
        run["first_token_s"] - run["arrival_s"],
        (run["last_token_s"] - run["first_token_s"]) / (run["output_toks"] - 1),
        float(run["last_token_s"].max()),
    )
    simulated = metrics(result.ttft_s, result.tpot_s, float(result.end_s.max()))
    return {
        name: (value, simulated[name], simulated[name] / value - 1)
        for name, value in measured.items()
    }


def metrics(ttft_s: Floats, tpot_s: Floats, makespan_s: float) -> dict[str, float]:
    return {
        "ttft_mean_s": float(ttft_s.mean()),
        "ttft_p95_s": float(np.percentile(ttft_s, 95)),
        "tpot_p50_s": float(np.percentile(tpot_s, 50)),
        "tpot_p95_s": float(np.percentile(tpot_s, 95)),
        "makespan_s": makespan_s,
    }


def draw(
    series: dict[str, dict[str, Floats]], results: dict[str, SimulationResult], plots: Path
) -> None:
    """Draw throughput and queues second by second, simulated over measured."""
    figure = blank_figure(12, 3.2 * len(series))
    rows = figure.subplots(len(series), 2)
    for (left, right), (name, measured) in zip(rows, series.items(), strict=True):
        steps = results[name].steps
        if steps is None:
            raise ValueError("the simulation logged no steps")
        column = steps.column
        seconds = np.arange(0, np.ceil(results[name].duration_s) + 1)
        output = column("num_tokens") - column("num_prefill_tokens")
        ends = column("start_s") + column("duration_s")
        simulated, _ = np.histogram(ends, seconds, weights=output)
        left.plot(measured["t"], measured["gen_throughput"], color="gray", label="vLLM")
        left.plot(seconds[1:], simulated, color="tab:blue", label="evenflow simulate")
        left.set(title=name, xlabel="time (s)", ylabel="output tokens per second", ylim=(0, None))
        left.legend()
        for quantity, color in (("running", "tab:green"), ("waiting", "tab:orange")):
            right.plot(measured["t"], measured[quantity], color="gray")
            right.plot(column("start_s"), column(f"num_{quantity}"), color=color, label=quantity)
        right.set(title="gray: vLLM", xlabel="time (s)", ylabel="requests", ylim=(0, None))
        right.legend()
    plots.mkdir(parents=True, exist_ok=True)
    write_figure(figure, plots / "simulator-vllm.png")
