"""What bursts do to a server at the same mean rate, in the simulator: BurstGPT's main message.

BurstGPT (Wang et al., arXiv 2401.17644) found that requests to real services come in bursts, and
that servers look better under steady arrivals than they are: with the same mean rate latencies get
longer, KV memory runs out, and more requests fail. Its generator draws gamma gaps (shapes of 0.5
and 0.25 in its examples, where memoryless arrivals have 1) within windows of 60 s.

Simulated is Llama-3-8B on an A100 with little memory for KV, so that memory is what runs out. All
arms have the same requests in the same order and the same mean rate; only when they come differs:

    even        one after the other
    poisson     memoryless
    gamma-0.25  gamma gaps of shape 0.25, a coefficient of variation of 2
    windows     these within windows of 60 s whose rates vary, too (log-normal, sigma 0.5)

A rate is borne if `QUANTILE` of the requests have their first token within `OBJECTIVE_S`. Load 1 is
the rate that is borne when arrivals are memoryless: what somebody would plan for who tests so.

The last line on stdout is one JSON object:
    servers[GiB of KV memory]:
        arms[arm][load]: of all requests in all draws
            ttft_p50_s, ttft_p99_s: to the first token.
            failed: share (0-1) that had none after `PATIENCE_S`: users give up.
            preemptions: per request.
            kv: mean share of the KV memory in use over time (0-1).
            most_waiting: most requests that waited.
        borne[arm]: highest rate that is borne, in requests/s.
    ttft_ratio[arm]: ttft_p99_s divided by that of poisson, with the least memory at load 0.9.
    borne_ratio[arm]: borne divided by that of poisson, with the least memory.

Usage: python benchmarks/burstiness.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice, repeat
from typing import Any

import numpy as np

from evenflow.simulation.capacity import find_capacity
from evenflow.simulation.instance import SimulationSettings
from evenflow.simulation.result import SimulationResult
from evenflow.simulation.roofline import RooflineCosts
from evenflow.simulation.shapes import load_device, load_model, num_kv_blocks
from evenflow.simulation.simulator import simulate
from evenflow.workloads.distributions import Gamma
from evenflow.workloads.generators import burst_times, lone_requests, piecewise_times
from evenflow.workloads.generators.sessions import CHAT_LENGTHS

LOADS = (0.7, 0.9, 1.0)
KV_GIB, QUICK_KV_GIB = (2, 6), (2,)
NUM_REQUESTS, QUICK_NUM_REQUESTS = 3_000, 700
NUM_DRAWS, QUICK_NUM_DRAWS = 3, 1
OBJECTIVE_S, QUANTILE = 1.0, 0.95
PATIENCE_S = 10.0
WINDOW_S, WINDOW_SIGMA = 60.0, 0.5
TOLERANCE = 0.05

MODEL, DEVICE = load_model("llama-3-8b"), load_device("a100")
COSTS = RooflineCosts(MODEL, DEVICE)

Times = Callable[[float, np.random.Generator], Iterator[float]]


def even_times(rate: float, _: np.random.Generator) -> Iterator[float]:
    """Yield arrivals with equal gaps."""
    return (number / rate for number in count(1))


def window_times(rate: float, rng: np.random.Generator) -> Iterator[float]:
    """Yield arrivals in bursts whose rate changes from window to window."""
    rates_rng, gaps_rng = rng.spawn(2)
    rates = (rate * float(rates_rng.lognormal(0.0, WINDOW_SIGMA)) for _ in repeat(None))
    return piecewise_times(((each, Gamma(0.25, 1.0)) for each in rates), WINDOW_S, gaps_rng)


ARMS: dict[str, Times] = {
    "even": even_times,
    "poisson": lambda rate, rng: burst_times(rate, 1.0, rng),
    "gamma-0.25": lambda rate, rng: burst_times(rate, 0.25, rng),
    "windows": window_times,
}


class Server:
    """A server with some memory for KV.

    Args:
        kv_gib: how much.
        num_requests: of each draw.
        num_draws: how many draws of arrivals and lengths are put together.
    """

    def __init__(self, kv_gib: int, num_requests: int, num_draws: int) -> None:
        self._num_requests = num_requests
        self._num_draws = num_draws
        memory = num_kv_blocks(MODEL, DEVICE, kv_memory_bytes=kv_gib << 30)
        self._settings = SimulationSettings(
            num_blocks=memory, max_model_len=4096, enable_prefix_caching=False
        )

    def serve(self, times: Times, rate: float) -> list[SimulationResult]:
        """Simulate all draws at a mean rate."""
        return [self._serve(times, rate, seed) for seed in range(self._num_draws)]

    def bears(self, times: Times, rate: float) -> bool:
        """Return whether the objective is met at a rate."""
        return bool(np.mean(ttft_s(self.serve(times, rate)) <= OBJECTIVE_S) >= QUANTILE)

    def figures(self, times: Times, rate: float) -> dict[str, float]:
        """Return what this module prints of an arm at a rate."""
        results = self.serve(times, rate)
        waits_s = ttft_s(results)
        steps = [result.steps for result in results if result.steps is not None]
        used, lasted_s, waiting = (
            np.concatenate([log.column(name) for log in steps])
            for name in ("num_used_blocks", "duration_s", "num_waiting")
        )
        num_blocks = self._settings.num_blocks
        figures = {
            "ttft_p50_s": np.quantile(waits_s, 0.5),
            "ttft_p99_s": np.quantile(waits_s, 0.99),
            "failed": np.mean(waits_s > PATIENCE_S),
            "preemptions": np.mean([result.num_preemptions.mean() for result in results]),
            "kv": np.average(used, weights=lasted_s) / num_blocks,
            "most_waiting": waiting.max(),
        }
        return {name: round(float(value), 4) for name, value in figures.items()}

    def _serve(self, times: Times, rate: float, seed: int) -> SimulationResult:
        num = self._num_requests
        times_rng, lengths_rng = np.random.default_rng(seed).spawn(2)
        arrivals_s = np.array(list(islice(times(rate, times_rng), num)))
        arrivals_s *= num / rate / arrivals_s[-1]  # so that all arms have the same mean
        requests = lone_requests(iter(arrivals_s.tolist()), CHAT_LENGTHS, lengths_rng)
        longest = self._settings.max_model_len
        fitting = (
            replace(
                request,
                num_prompt_tokens=min(request.num_prompt_tokens, longest // 2),
                num_output_tokens=min(request.num_output_tokens, longest // 2),
            )
            for request in requests
        )
        return simulate(fitting, self._settings, COSTS, log_steps=True)


def ttft_s(results: list[SimulationResult]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the times to first token of all requests."""
    return np.concatenate([result.ttft_s for result in results])


def measure(server: Server, start_rate: float) -> dict[str, Any]:
    """Return what this module prints of a server.

    Args:
        server: to simulate.
        start_rate: a guess at what it bears, in requests/s.
    """
    borne: dict[str, float] = {}
    for arm, times in ARMS.items():
        search = find_capacity(
            partial(server.bears, times),
            start_rate,
            min_rate=start_rate / 100,
            max_rate=start_rate * 100,
            tolerance=TOLERANCE,
        )
        borne[arm] = round(search.rate or 0.0, 3)
    arms = {
        arm: {load: server.figures(times, load * borne["poisson"]) for load in LOADS}
        for arm, times in ARMS.items()
    }
    return {"arms": arms, "borne": borne}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one server and one draw; a minute")
    quick = parser.parse_args().quick
    num_requests = QUICK_NUM_REQUESTS if quick else NUM_REQUESTS
    num_draws = QUICK_NUM_DRAWS if quick else NUM_DRAWS
    servers = {}
    for kv_gib in QUICK_KV_GIB if quick else KV_GIB:
        servers[kv_gib] = measure(Server(kv_gib, num_requests, num_draws), 1.7 * kv_gib)
        for arm, by_load in servers[kv_gib]["arms"].items():
            print(f"{kv_gib} GiB, {arm}: {servers[kv_gib]['borne'][arm]}/s", file=sys.stderr)
            for load, figures in by_load.items():
                print(f"    load {load}: {figures}", file=sys.stderr)
    least = servers[KV_GIB[0]]
    tails = {arm: by_load[0.9]["ttft_p99_s"] for arm, by_load in least["arms"].items()}
    rates = least["borne"]
    result = {
        "servers": servers,
        "ttft_ratio": {arm: round(tail / tails["poisson"], 2) for arm, tail in tails.items()},
        "borne_ratio": {arm: round(rate / rates["poisson"], 3) for arm, rate in rates.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
