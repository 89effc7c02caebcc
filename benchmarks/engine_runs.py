"""The simulator beside this machine's engine, for `simulator_validation.py`.

The engine is calibrated (`evenflow calibrate`), and then serves three workloads for real, each of
which is also simulated with the step times that calibration found and nothing else:

    chat         requests at random, short prompts and answers
    long         prompts of 500 to 1,500 tokens, computed in chunks beside the answers of others
    multi_turn   conversations that grow, with so little KV memory that requests are preempted

Arrivals are in real time, lengths are fixed beforehand (`ignore_eos`). Metrics: mean and 99th
percentile of the time to first token and of the time per output token, the makespan, and the most
KV blocks in use at once. Rounds of all three alternate with calibrations, each round is compared
with the calibration before it, and the median error over rounds is reported.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evenflow.config import load_config
from evenflow.core.clock import MonotonicClock
from evenflow.core.sampling import SamplingParams
from evenflow.engine.build import Runtime, build_runtime, build_scheduler
from evenflow.engine.calibration.calibrate import calibrate
from evenflow.engine.engine import Engine
from evenflow.engine.outputs import RequestMetrics
from evenflow.execution.costs import CostModel
from evenflow.simulation.arrivals import Arrivals
from evenflow.simulation.instance import SimulationSettings
from evenflow.simulation.prompts import Prompts, answer_token
from evenflow.simulation.simulator import simulate
from evenflow.workloads.request import WorkloadRequest

Comparison = dict[str, tuple[float, float, float]]
Workload = list[WorkloadRequest]

MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, MAX_MODEL_LEN = 16, 512, 2048
NUM_BLOCKS = 2048


@dataclass(frozen=True)
class Case:
    """A workload and the KV memory it gets."""

    requests: Callable[[np.random.Generator], Workload]
    num_blocks: int = NUM_BLOCKS


def chat(rng: np.random.Generator) -> Workload:
    """Requests at random."""
    arrivals = np.cumsum(rng.exponential(0.45, 40))
    return [
        WorkloadRequest(
            num_prompt_tokens=int(np.clip(rng.lognormal(4.0, 1.0), 4, 400)),
            num_output_tokens=int(np.clip(rng.lognormal(3.6, 0.6), 4, 120)),
            arrival_s=float(arrival_s),
        )
        for arrival_s in arrivals
    ]


def long(rng: np.random.Generator) -> Workload:
    """Long prompts."""
    arrivals = np.cumsum(rng.exponential(2.5, 10))
    return [
        WorkloadRequest(
            num_prompt_tokens=int(rng.integers(500, 1500)),
            num_output_tokens=int(rng.integers(16, 48)),
            arrival_s=float(arrival_s),
        )
        for arrival_s in arrivals
    ]


def multi_turn(rng: np.random.Generator) -> Workload:
    """Conversations of three turns."""
    starts_s = rng.uniform(0, 6, 10)
    turns = [
        WorkloadRequest(
            num_prompt_tokens=int(rng.integers(30, 120)),
            num_output_tokens=int(rng.integers(30, 90)),
            arrival_s=float(start_s),
            session=str(session),
            turn=turn,
            continues=turn > 0,
            think_time_s=float(rng.uniform(0.2, 1.5)) if turn else 0.0,
        )
        for session, start_s in enumerate(starts_s)
        for turn in range(3)
    ]
    return sorted(turns, key=lambda request: (request.arrival_s, request.turn))


CASES = {"chat": Case(chat), "long": Case(long), "multi_turn": Case(multi_turn, num_blocks=50)}


def validate_engine(model: str, num_rounds: int, *, quick: bool) -> dict[str, Comparison]:
    """Serve and simulate; return by workload the figures of the round with the median error.

    Args:
        model: a name or path.
        num_rounds: how often.
        quick: calibrate with fewer steps.
    """
    loaded = load_config(
        {
            "model": model,
            "max_num_seqs": MAX_NUM_SEQS,
            "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
            "max_model_len": MAX_MODEL_LEN,
            "num_blocks_override": NUM_BLOCKS,
        }
    )
    runtime = build_runtime(loaded.config)
    runtime.warm_up()
    rounds: dict[str, list[Comparison]] = {name: [] for name in CASES}
    for number in range(num_rounds):
        costs = calibrate(runtime, quick=quick).costs()
        for name, case in CASES.items():
            requests = case.requests(np.random.default_rng(number))
            real = serve(runtime, case, requests)
            simulated = imitate(costs, runtime, case, requests)
            rounds[name].append(
                {
                    key: (value, simulated[key], simulated[key] / value - 1)
                    for key, value in real.items()
                }
            )
    return {
        f"this engine, {name}": {
            key: min(
                (comparison[key] for comparison in comparisons),
                key=lambda of: abs(of[2] - statistics.median(c[key][2] for c in comparisons)),
            )
            for key in comparisons[0]
        }
        for name, comparisons in rounds.items()
    }


def serve(runtime: Runtime, case: Case, requests: Workload) -> dict[str, float]:
    """Serve a workload in real time with a fresh scheduler; return its figures."""
    clock = MonotonicClock()
    engine = Engine(
        build_scheduler(runtime.config, case.num_blocks),
        runtime.executor,
        clock,
        runtime.engine.limits,
        detokenizer=lambda skip_special: runtime.tokenizer.stream(skip_special_tokens=skip_special),
    )
    arrivals, prompts = Arrivals(requests), Prompts()
    vocab_size = runtime.engine.limits.vocab_size
    live: dict[str, WorkloadRequest] = {}
    ended: list[RequestMetrics] = []
    num_added = peak_blocks = 0
    started_s = clock.now_s()
    while len(ended) < len(requests):
        for due_s, request in arrivals.take(clock.now_s() - started_s):
            request_id = str(num_added)
            num_added += 1
            prompt = [token % vocab_size for token in prompts.write(request, request_id)]
            params = SamplingParams(
                max_tokens=request.num_output_tokens, ignore_eos=True, temperature=0.0
            )
            engine.add_request(request_id, prompt, params, arrival_s=started_s + due_s)
            live[request_id] = request
        if not engine.has_work:
            time.sleep(max(0.0, arrivals.next_s - (clock.now_s() - started_s)))
            continue
        for delta in engine.step():
            if delta.metrics is None:
                continue
            ended.append(delta.metrics)
            request = live.pop(delta.request_id)
            if request.session is not None:
                token_id = answer_token(delta.request_id)
                prompts.answer(request.session, token_id, delta.metrics.num_output_tokens)
                arrivals.answered(request.session, clock.now_s() - started_s)
        kv = engine.scheduler.kv
        peak_blocks = max(peak_blocks, kv.num_blocks - kv.num_available_blocks)
    return figures(
        np.array([m.ttft_s for m in ended]),
        np.array([m.tpot_s for m in ended if m.tpot_s is not None]),
        max(m.finished_s for m in ended) - started_s,
        peak_blocks,
    )


def imitate(costs: CostModel, runtime: Runtime, case: Case, requests: Workload) -> dict[str, float]:
    """Simulate a workload; return its figures."""
    settings = SimulationSettings(
        num_blocks=case.num_blocks,
        policy=runtime.config.scheduler.scheduling_policy,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        block_size=runtime.kv_plan.block_size,
        max_model_len=MAX_MODEL_LEN,
    )
    result = simulate(requests, settings, costs)
    if case.num_blocks < NUM_BLOCKS and not result.num_preemptions.any():
        raise SystemExit("nobody was preempted: the workload does not show what it is for")
    return figures(result.ttft_s, result.tpot_s, result.duration_s, result.peak_kv_blocks)


def figures(
    ttft_s: np.ndarray, tpot_s: np.ndarray, makespan_s: float, peak_blocks: int
) -> dict[str, float]:
    """Return the metrics by name."""
    values = {
        "ttft_mean_s": float(ttft_s.mean()),
        "ttft_p99_s": float(np.percentile(ttft_s, 99)),
        "tpot_mean_s": float(tpot_s.mean()),
        "tpot_p99_s": float(np.percentile(tpot_s, 99)),
        "makespan_s": makespan_s,
        "peak_kv_blocks": float(peak_blocks),
    }
    if not all(map(math.isfinite, values.values())):
        raise SystemExit(f"a request was not served: {values}")
    return values
