"""DistServe's published operating point in the simulator, for `simulator_validation.py`.

DistServe's simulator ends its example with OPT-13B on ShareGPT at 1.56 requests/s per GPU: the
highest rate at which 90 % of 300 requests have their first token within 200 ms and the others at
most 100 ms apart, found by bisection between 0 and 5 to within 0.25, with a prefill instance on two
A100s (tensor parallel) and a decode instance on one.

Here both instances are evenflow's engine, with DistServe's step times for them (its coefficients,
in `evenflow.execution.costs`), the memory of an A100 80GB and its NVLink. DistServe's lengths are
not to be had. These are the answers in real ShareGPT conversations, each with all that was said
before it as its prompt, scaled to the means that the paper gives (755.5 and 200.3 tokens) and, as
OPT demands, 2,048 tokens at most. The rate hangs on the lengths: without the scaling (724 and 310
on average) answers are half as long again, and the decode instance's memory is full much sooner.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evenflow.execution.costs import load_profile
from evenflow.simulation.capacity import find_capacity
from evenflow.simulation.disaggregated import InstancePool, simulate_disaggregated
from evenflow.simulation.instance import SimulationSettings
from evenflow.simulation.shapes import load_device, load_model, num_kv_blocks
from evenflow.workloads.request import WorkloadRequest

PUBLISHED_RATE_PER_GPU = 1.5625  # 5 * 5 / 16 on the published search's grid, printed as 1.56
NUM_GPUS = 3
MEAN_TOKENS = (755.5, 200.3)
MAX_TOKENS = 2048
MAX_TTFT_S, MAX_TPOT_S, QUANTILE = 0.2, 0.1, 0.9
NUM_REQUESTS = 300

Lengths = Sequence[tuple[int, int]]


def validate_distserve(turns: Path, num_seeds: int) -> dict[str, tuple[float, float, float]]:
    """Return (published, simulated, relative error) of the rate per GPU.

    Args:
        turns: `sharegpt_turns.csv.gz`.
        num_seeds: draws of the workload over which attainment is averaged.
    """
    lengths = scaled(read_answers(turns))

    def is_borne(rate: float) -> bool:
        attained = [attainment(lengths, rate, seed) for seed in range(num_seeds)]
        return float(np.mean(attained)) >= QUANTILE

    capacity = find_capacity(is_borne, 4.0, min_rate=0.1, max_rate=50.0, tolerance=0.02)
    rate = (capacity.rate or 0.0) / NUM_GPUS
    error = rate / PUBLISHED_RATE_PER_GPU - 1
    return {"rate_per_gpu": (PUBLISHED_RATE_PER_GPU, rate, error)}


def attainment(lengths: Lengths, rate: float, seed: int) -> float:
    """Return the share of requests that meet both objectives at a rate."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(lengths), NUM_REQUESTS)
    arrivals = np.cumsum(rng.exponential(1 / rate, NUM_REQUESTS))
    requests = [
        WorkloadRequest(
            num_prompt_tokens=lengths[index][0],
            num_output_tokens=lengths[index][1],
            arrival_s=float(arrival_s),
        )
        for index, arrival_s in zip(chosen, arrivals, strict=True)
    ]
    model, device = load_model("opt-13b"), load_device("a100")
    link = device.links["nvlink"]
    result = simulate_disaggregated(
        requests,
        _pool(num_kv_blocks(model, device, tp=2), tp=2),
        _pool(num_kv_blocks(model, device), tp=1),
        transfer_s=lambda num_tokens: (
            link.latency_s
            + num_tokens * model.num_layers * model.kv_bytes_per_token_per_layer / link.bytes_per_s
        ),
    )
    ttft_s = result.first_token_s - result.arrival_s
    tpot_s = (result.end_s - result.first_token_s) / np.maximum(1, result.num_output_tokens - 1)
    return float(np.mean((ttft_s <= MAX_TTFT_S) & (tpot_s <= MAX_TPOT_S)))


def read_answers(turns: Path) -> list[tuple[int, int]]:
    """Return (tokens before it, its tokens) of every answer in the conversations of a file."""
    answers = []
    conversation, before = None, 0
    with gzip.open(turns, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if row["conversation"] != conversation:
                conversation, before = row["conversation"], 0
            tokens = int(row["tokens"])
            if row["role"] == "assistant" and before:
                answers.append((before, tokens))
            before += tokens
    return answers


def scaled(answers: Lengths) -> list[tuple[int, int]]:
    """Return the answers that OPT can give, scaled to the paper's means."""
    pairs = np.array([pair for pair in answers if sum(pair) <= MAX_TOKENS and min(pair) >= 4])
    pairs = np.maximum(4, np.rint(pairs * (np.array(MEAN_TOKENS) / pairs.mean(axis=0))))
    return [(int(p), int(a)) for p, a in pairs if p + a <= MAX_TOKENS]


def _pool(num_blocks: int, tp: int) -> InstancePool:
    settings = SimulationSettings(
        num_blocks=num_blocks, max_num_batched_tokens=4096, max_model_len=MAX_TOKENS + 1
    )
    return InstancePool(settings, load_profile(f"distserve-opt-13b-tp{tp}").costs())
