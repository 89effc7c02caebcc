"""The engine and the simulator decide the same, step by step, under every policy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from evenflow.core.clock import VirtualClock
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.costs import StepShape, shape_of
from evenflow.execution.executor import ScriptedExecutor
from evenflow.memory.transfers import Tier
from evenflow.scheduling.plan import StepPlan, StepResult
from evenflow.scheduling.policy import available_policies, load_policy
from evenflow.simulation import instance
from evenflow.simulation.executor import SimulatedExecutor
from evenflow.simulation.instance import SimulationSettings
from evenflow.simulation.links import HostMemory
from evenflow.simulation.prompts import MAX_TOKEN_ID, Prompts, answer_token
from evenflow.simulation.result import SimulationResult
from evenflow.simulation.shapes import LinkShape
from evenflow.simulation.simulator import simulate
from evenflow.workloads.request import Segment, WorkloadRequest
from support.step_costs import OneByOne

Decision = tuple[dict[str, int], list[int]]

SETTINGS = {
    "roomy": SimulationSettings(num_blocks=400, max_num_seqs=12, max_num_batched_tokens=64),
    "tight": SimulationSettings(
        num_blocks=24, block_size=8, max_num_seqs=8, max_num_batched_tokens=48, max_model_len=180
    ),
    "uncached": SimulationSettings(
        num_blocks=40,
        block_size=4,
        max_num_seqs=6,
        max_num_batched_tokens=32,
        max_model_len=150,
        enable_prefix_caching=False,
    ),
    "host": SimulationSettings(
        num_blocks=24,
        block_size=8,
        max_num_seqs=8,
        max_num_batched_tokens=48,
        max_model_len=180,
        host=HostMemory(
            num_blocks=60,
            bytes_per_block=1000,
            links={
                (Tier.DEVICE, Tier.HOST): LinkShape(bytes_per_s=500e3),
                (Tier.HOST, Tier.DEVICE): LinkShape(bytes_per_s=300e3, latency_s=0.001),
            },
        ),
    ),
}


class Costs(OneByOne):
    """A step takes longer the more it computes and reads."""

    description = "a test"

    def step_s(self, shape: StepShape) -> float:
        return 0.01 + 0.0007 * shape.num_tokens + 1e-5 * shape.num_context_tokens


def decision(requests: Sequence[Request], counts: Sequence[int], engine: Engine) -> Decision:
    """Return who computes how much, and in which blocks the batch lies."""
    kv = engine.scheduler.kv
    blocks = [block for r in requests for block in kv.table(r.request_id).ids.tolist()]
    return dict(zip((r.request_id for r in requests), counts, strict=True)), blocks


class RecordingExecutor(ScriptedExecutor):
    """Answers from a script, takes the time of the cost model, and writes down what it is told."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(lambda request_id, _: answer_token(request_id))
        self.decisions: list[Decision] = []
        self.engine: Engine
        self._clock = clock

    def execute(self, plan: StepPlan) -> StepResult:
        self.decisions.append(decision(plan.requests, plan.num_new_tokens, self.engine))
        self._clock.advance(Costs().step_s(shape_of(plan)))
        return super().execute(plan)


def decisions_of_engine(
    requests: Sequence[WorkloadRequest], settings: SimulationSettings
) -> list[Decision]:
    """Serve the requests as the server's host does, one step after the other."""
    clock = VirtualClock()
    executor = RecordingExecutor(clock)
    limits = ModelLimits(settings.max_model_len, MAX_TOKEN_ID + 1)
    engine = Engine(settings.build_scheduler(clock), executor, clock, limits)
    executor.engine = engine
    prompts = Prompts()
    coming = list(enumerate(requests))
    while coming or engine.has_work:
        while coming and coming[0][1].arrival_s <= clock.now_s():
            number, request = coming.pop(0)
            engine.add_request(
                str(number),
                prompts.write(request, str(number)),
                SamplingParams(max_tokens=request.num_output_tokens, ignore_eos=True),
                priority=request.priority,
                tenant_id=request.tenant,
                arrival_s=request.arrival_s,
            )
        if engine.has_work:
            engine.step()
            engine.scheduler.check_integrity()
        else:
            clock.advance_to(coming[0][1].arrival_s)
    return executor.decisions


def decisions_of_simulator(
    requests: Sequence[WorkloadRequest],
    settings: SimulationSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[list[Decision], SimulationResult]:
    """Return the simulator's decisions and its result."""
    decisions: list[Decision] = []
    engines: list[Engine] = []

    class Recorder(SimulatedExecutor):
        def execute(self, plan: StepPlan) -> StepResult:
            work = dict(zip(plan.requests, plan.num_new_tokens, strict=True))
            work |= dict.fromkeys(plan.coasting, 1)
            requests = [r for r in engines[0].scheduler.running if r in work]
            decisions.append(decision(requests, [work[r] for r in requests], engines[0]))
            return super().execute(plan)

        def coast(self, *args: Any) -> int:
            step = {r.request_id: 1 for r in engines[0].scheduler.running}
            num_steps = super().coast(*args)
            decisions.extend((step, []) for _ in range(num_steps))
            return num_steps

    class Watched(Engine):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            engines.append(self)

    monkeypatch.setattr(instance, "SimulatedExecutor", Recorder)
    monkeypatch.setattr(instance, "Engine", Watched)
    return decisions, simulate(requests, settings, Costs())


def a_trace(seed: int) -> list[WorkloadRequest]:
    """Bursts of requests of two tenants, some of which begin alike."""
    rng = random.Random(seed)
    now_s, requests = 0.0, []
    for number in range(60):
        now_s += rng.choice((0.0, 0.0, 0.02, 0.4, 3.0))
        common = Segment(f"system {rng.randrange(3)}", rng.randrange(1, 40))
        own = Segment(f"question {number}", rng.randrange(1, 30))
        segments = (common, own) if rng.random() < 0.7 else (own,)
        requests.append(
            WorkloadRequest(
                num_prompt_tokens=sum(segment.num_tokens for segment in segments),
                num_output_tokens=rng.randrange(1, 70),
                arrival_s=now_s,
                tenant=rng.choice(("blue", "green")),
                priority=rng.randrange(3),
                segments=segments,
            )
        )
    return requests


@pytest.mark.parametrize("policy", available_policies())
@pytest.mark.parametrize("name", SETTINGS)
def test_simulator_decides_as_the_engine_does(
    policy: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS[name], policy=policy)
    for seed in range(3):
        requests = a_trace(seed)
        expected = decisions_of_engine(requests, settings)
        with monkeypatch.context() as patch:
            decided, result = decisions_of_simulator(requests, settings, patch)
        assert len(decided) == len(expected)
        for step, ((who, blocks), (same, there)) in enumerate(zip(decided, expected, strict=True)):
            assert who == same, step
            # A stride does not say where each of its steps lay, but where the next one does.
            assert blocks in ([], there), step
        coasts = not load_policy(policy).charges.held_token_s and settings.host is None
        assert any(not blocks for _, blocks in decided) == coasts
        assert (settings.host is not None) == bool(result.num_bytes_moved)
        assert (name != "roomy") == bool(result.num_preemptions.any())
