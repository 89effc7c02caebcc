"""Simulated runs, made up or simulated in no time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evenflow.bench.simulated.run import Measures, SimulatedRun
from evenflow.bench.simulated.summary import summarize_simulation
from evenflow.bench.simulated.variant import Variant
from evenflow.core.ids import DEFAULT_TENANT
from evenflow.execution.costs import StepShape
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.simulation.instance import SimulationSettings
from evenflow.simulation.result import SimulationResult
from evenflow.simulation.simulator import simulate
from evenflow.workloads.request import WorkloadRequest
from support.step_costs import OneByOne

MEASURES = Measures(slo={"ttft": 500.0, "tpot": 50.0})


@dataclass(slots=True, frozen=True)
class SteadyCosts(OneByOne):
    """Steps that all take as long."""

    seconds: float = 0.01
    description: str = "10 ms for every step; made up"

    def step_s(self, shape: StepShape) -> float:
        return self.seconds


def a_result(
    *requests: tuple[float, float, float, int, int],
    tenants: Sequence[str] = (),
    reasons: Sequence[str] = (),
    **fields: Any,
) -> SimulationResult:
    """Return a result of requests (arrival, first token, end, prompt tokens, output tokens)."""
    arrival_s, first_s, end_s, num_prompt, num_output = map(np.array, zip(*requests, strict=True))
    values: dict[str, Any] = {
        "arrival_s": arrival_s,
        "first_token_s": first_s,
        "end_s": end_s,
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        "num_cached_tokens": np.zeros(len(requests), np.int64),
        "num_preemptions": np.zeros(len(requests), np.int64),
        "tenant": list(tenants) or [DEFAULT_TENANT] * len(requests),
        "finish_reason": list(reasons) or ["length"] * len(requests),
        "itl_s": np.array([0.1, 0.2]),
        "itl_counts": np.array([3, 1]),
        "duration_s": float(np.nanmax(end_s)),
        "wall_s": 0.5,
        "num_steps": 10,
        "num_tokens": 100,
        "peak_kv_blocks": 6,
        "num_kv_blocks": 8,
        "preemption_counts": {},
        "num_bytes_moved": 0,
        "switch_stall_s": 0.0,
        "kv": KVCacheManager(8, 16).stats(),
        "steps": None,
        "explanations": {},
    }
    return SimulationResult(**(values | fields))


def a_run(
    label: str = "fcfs",
    *,
    policy: str = "fcfs",
    tenants: Sequence[str] = ("ann", "bob"),
    step_s: float = 0.01,
    num_requests: int = 40,
) -> SimulatedRun:
    """Simulate some requests on a small server and return the run."""
    requests = [
        WorkloadRequest(
            num_prompt_tokens=20 + index % 7,
            num_output_tokens=5 + index % 11,
            arrival_s=index * 0.02,
            tenant=tenants[index % len(tenants)],
        )
        for index in range(num_requests)
    ]
    settings = SimulationSettings(
        num_blocks=64, policy=policy, max_num_seqs=8, max_num_batched_tokens=64
    )
    result = simulate(requests, settings, SteadyCosts(step_s), log_steps=True)
    variant = Variant(policy=policy, num_blocks=64)
    figures = summarize_simulation(
        result, percentiles=MEASURES.percentiles, goodput=MEASURES.slo, price_per_hour=2.0
    )
    settings_of = {"settings": {"trace": "made-up.jsonl", **variant.for_json()}}
    return SimulatedRun(
        label=label,
        variant=variant,
        sources={"step times": SteadyCosts().description},
        summary={"label": label, "num_prompts": num_requests, **settings_of, **figures},
        result=result,
    )
