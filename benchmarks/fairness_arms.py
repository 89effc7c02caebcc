"""Two greedy tenants and a modest one: how evenly each policy divides the engine between them.

    greedy-1   weight 1, keeps three requests with the engine for each of its seats
    greedy-2   weight 1, keeps one for each seat
    modest     weight 2, sends at random a quarter of what the engine can do, half of its part

All send prompts and answers of the same lengths, and the longer a prompt is, the longer is its
answer: so policies compute the same mixture of the two, whomever they serve, and their throughput
can be compared.

Jain's index is taken over what each tenant received divided by what was due to it. Dividing by the
weight alone would blame a policy for not forcing service on the modest tenant. What is due in a
window is the weighted max-min division of all that was computed in it: nobody is due more than it
could have had, and what that leaves is divided by weight. The greedy tenants could have had
anything; the modest one, what it lacked when the window began of all that it would have had by its
end with the engine to itself, which an arm of its own measures with the same requests at the same
times. Windows of 10 s begin every quarter of a second, the first with the first request; the figure
is that of the worst one.

Each arm is an engine of its own in this process, without a server. The arms of a round, the modest
tenant's included, take turns of a quarter of a second, and for each only its own turns are time: a
machine's speed changes by more in a minute than the policies differ, and so changes for all alike.

The last line on stdout is one JSON object:
    jain: by policy, Jain's index in the worst window.
    jain_median: by policy, in the median window.
    throughput_ratio: by policy, weighted tokens per second divided by those of fcfs in the same
        round, median over rounds.
    gap: by policy, the largest service gap of the greedy tenants over any interval, in weighted
        tokens.
    gap_bound: what it stays below under vtc.
    modest_ttft_s: by policy, mean time to first token of the modest tenant, seconds.

Usage: python benchmarks/fairness_arms.py [--world real|simulated] [--quick] [--model smollm2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evenflow.core.clock import Clock, MonotonicClock, VirtualClock
from evenflow.core.ids import TenantId
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.executor import Executor
from evenflow.fairness.report import jain_index, max_min_shares, service_gap_bound
from evenflow.fairness.tenants import Tenant, TenantDirectory, TenantLimits
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.policies.fair import Fair
from evenflow.scheduling.policies.fcfs import Fcfs
from evenflow.scheduling.policies.vtc import Vtc
from evenflow.scheduling.scheduler import Scheduler
from evenflow.simulation.executor import SimulatedExecutor
from evenflow.simulation.roofline import RooflineCosts
from evenflow.simulation.shapes import load_device, load_model, num_kv_blocks

POLICIES = {"fcfs": Fcfs, "vtc": Vtc, "fair": Fair}
WINDOW_S = 10.0
SAMPLE_S = 0.25
TURN_S = 0.25
IDLE_S = 1e-3
GREEDY = {TenantId("greedy-1"): 3, TenantId("greedy-2"): 1}
MODEST = TenantId("modest")
MODEST_PART = 0.25
WEIGHTS = {**dict.fromkeys(GREEDY, 1.0), MODEST: 2.0}
BLOCK_SIZE = 16


class TurnClock(VirtualClock):
    """An arm's own time: what it is told to pass, and what passes elsewhere during its turns.

    Args:
        source: shows what passes elsewhere.
    """

    def __init__(self, source: Clock) -> None:
        super().__init__()
        self._source = source
        self._begun_s: float | None = None

    def now_s(self) -> float:
        """Return the arm's time."""
        if self._begun_s is None:
            return super().now_s()
        return super().now_s() + self._source.now_s() - self._begun_s

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let time pass."""
        self._begun_s = self._source.now_s()
        yield
        self.advance(self._source.now_s() - self._begun_s)
        self._begun_s = None


@dataclass(frozen=True, kw_only=True)
class World:
    """Where the arms run.

    Attributes:
        executor: returns one for an arm, and the clock on which it passes time. What it computes
            for one arm may write over the KV of others: tokens are not looked at.
        limits: of the model.
        num_blocks: KV blocks.
        max_num_seqs: most running requests.
        max_num_batched_tokens: token budget of a step.
        prompt_tokens: shortest and longest prompt.
        output_tokens: shortest and longest answer.
    """

    executor: Callable[[], tuple[Executor, TurnClock]]
    limits: ModelLimits
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]

    @property
    def request_tokens(self) -> float:
        """Mean weighted tokens of a request."""
        return sum(self.prompt_tokens) / 2 + sum(self.output_tokens)

    @property
    def gap_bound(self) -> float:
        """What the service gap of the greedy tenants stays below under vtc."""
        one, other = (WEIGHTS[tenant] for tenant in GREEDY)
        return service_gap_bound(
            (one, other),
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            longest_prompt=self.prompt_tokens[1],
            longest_output=self.output_tokens[1],
        )


def real_world(model: str = "smollm2") -> World:
    """Return this machine's engine."""
    # Not above: they need packages that a machine with `--world gpu` can do without.
    from evenflow.config import load_config
    from evenflow.engine.build import build_runtime

    config = load_config({"model": model, "max_model_len": 512, "num_blocks_override": 512}).config
    runtime = build_runtime(config)
    runtime.warm_up()
    return World(
        executor=lambda: (runtime.executor, TurnClock(MonotonicClock())),
        limits=runtime.engine.limits,
        num_blocks=512,
        max_num_seqs=8,
        max_num_batched_tokens=128,
        prompt_tokens=(16, 64),
        output_tokens=(8, 40),
    )


def simulated_world(model_name: str = "llama-3-8b", device_name: str = "a10") -> World:
    """Return a simulated GPU with a model."""
    model, device = load_model(model_name), load_device(device_name)
    costs = RooflineCosts(model, device)

    def executor() -> tuple[Executor, TurnClock]:
        clock = TurnClock(VirtualClock())
        return SimulatedExecutor(costs, clock), clock

    return World(
        executor=executor,
        limits=ModelLimits(8192, 100_000),
        num_blocks=num_kv_blocks(model, device),
        max_num_seqs=32,
        max_num_batched_tokens=512,
        prompt_tokens=(32, 480),
        output_tokens=(16, 240),
    )


@dataclass
class Run:
    """What an arm did. Rows are points in time, columns the tenants in the order of `WEIGHTS`.

    Attributes:
        at_s: seconds since the start.
        served: weighted tokens given until then.
        modest_ttft_s: times to first token of the modest tenant.
    """

    at_s: list[float] = field(default_factory=list)
    served: list[list[float]] = field(default_factory=list)
    modest_ttft_s: list[float] = field(default_factory=list)

    @property
    def throughput(self) -> float:
        """Weighted tokens per second."""
        return sum(self.served[-1]) / self.at_s[-1]

    def jain(self, alone: Run) -> list[float]:
        """Return Jain's index of each window.

        Args:
            alone: what the modest tenant would have had.
        """
        at_s, served = np.array(self.at_s), np.array(self.served)
        modest = list(WEIGHTS).index(MODEST)
        possible = np.interp(at_s, alone.at_s, np.array(alone.served)[:, modest])
        ends = np.searchsorted(at_s, at_s + WINDOW_S)
        indices = []
        for begin, end in enumerate(ends[ends < len(at_s)]):
            given = dict(zip(WEIGHTS, served[end] - served[begin], strict=True))
            wanted = dict.fromkeys(WEIGHTS, float("inf"))
            wanted[MODEST] = max(possible[end], served[end, modest]) - served[begin, modest]
            due = max_min_shares(sum(given.values()), wanted, WEIGHTS)
            indices.append(jain_index([given[t] / due[t] for t in WEIGHTS if due[t] > 0]))
        return indices

    def gap(self) -> float:
        """Return the largest service gap of the greedy tenants over any interval."""
        columns = [list(WEIGHTS).index(tenant) for tenant in GREEDY]
        shares = np.array(self.served)[:, columns] / [WEIGHTS[tenant] for tenant in GREEDY]
        ahead = shares[:, 0] - shares[:, 1]
        return float(ahead.max() - ahead.min())


class Arm:
    """An engine under one policy, and those who use it.

    Args:
        world: where it runs.
        policy: the policy's name.
        modest_rate: requests per second of the modest tenant.
        seed: of lengths and arrivals.
        is_alone: whether the greedy ones stay away.

    Attributes:
        run: what it did so far.
    """

    def __init__(
        self,
        world: World,
        policy: str,
        modest_rate: float,
        seed: int,
        *,
        is_alone: bool = False,
    ) -> None:
        self.run = Run()
        self._world = world
        executor, self._clock = world.executor()
        scheduler = Scheduler(
            POLICIES[policy](),
            KVCacheManager(world.num_blocks, BLOCK_SIZE, enable_prefix_caching=False),
            max_num_seqs=world.max_num_seqs,
            max_num_batched_tokens=world.max_num_batched_tokens,
            directory=TenantDirectory(
                Tenant(id_, TenantLimits(weight=weight)) for id_, weight in WEIGHTS.items()
            ),
        )
        self._engine = Engine(scheduler, executor, self._clock, world.limits, only_ends=True)
        self._rngs = {id_: np.random.default_rng([seed, n]) for n, id_ in enumerate(WEIGHTS)}
        self._modest_rate = modest_rate
        self._modest_next_s = 0.0 if modest_rate else float("inf")
        self._num_live: Counter[TenantId] = Counter()
        self._greedy = {} if is_alone else GREEDY
        self._num_added = 0

    def take_turn(self, until_s: float) -> None:
        """Serve until so much of the arm's time has passed since it began."""
        with self._clock.turn():
            while (now_s := self._clock.now_s()) < until_s:
                self._send(now_s)
                self._sample(now_s)
                if self._engine.has_work:
                    self._step()
                else:  # the modest tenant is alone, and not there
                    self._clock.advance(IDLE_S)

    def _sample(self, now_s: float) -> None:
        """Write down what tenants have got, if it is time."""
        if not self.run.at_s or now_s >= self.run.at_s[-1] + SAMPLE_S:
            service = self._engine.scheduler.service.service_tokens
            self.run.at_s.append(now_s)
            self.run.served.append([service(tenant) for tenant in WEIGHTS])

    def _step(self) -> None:
        for delta in self._engine.step():
            metrics = delta.metrics
            if metrics is None:
                continue
            self._num_live[metrics.tenant_id] -= 1
            if metrics.tenant_id == MODEST and metrics.ttft_s is not None:
                self.run.modest_ttft_s.append(metrics.ttft_s)

    def _send(self, now_s: float) -> None:
        for tenant_id, num_per_seat in self._greedy.items():
            while self._num_live[tenant_id] < num_per_seat * self._world.max_num_seqs:
                self._add(tenant_id)
        while self._modest_next_s <= now_s:
            self._add(MODEST)
            self._modest_next_s += self._rngs[MODEST].exponential(1 / self._modest_rate)

    def _add(self, tenant_id: TenantId) -> None:
        rng, world = self._rngs[tenant_id], self._world
        size = rng.random()
        num_prompt, num_output = (
            round(shortest + size * (longest - shortest))
            for shortest, longest in (world.prompt_tokens, world.output_tokens)
        )
        prompt = rng.integers(world.limits.vocab_size, size=num_prompt).tolist()
        params = SamplingParams(max_tokens=num_output, temperature=0.0, ignore_eos=True)
        self._engine.add_request(str(self._num_added), prompt, params, tenant_id=tenant_id)
        self._num_added += 1
        self._num_live[tenant_id] += 1


def take_turns(arms: Sequence[Arm], duration_s: float) -> None:
    """Let every arm serve for so long, a little at a time."""
    for number in range(1, round(duration_s / TURN_S) + 1):
        for arm in arms:
            arm.take_turn(number * TURN_S)


def fairness_arms(world: World, *, duration_s: float, num_rounds: int = 1) -> dict[str, Any]:
    """Run all policies; return the object that this module prints.

    Args:
        world: where.
        duration_s: of each arm in each round; some times `WINDOW_S`, whole turns.
        num_rounds: how often all arms run.
    """
    saturated = Arm(world, "fcfs", 0.0, 0)
    take_turns([saturated], 2 * WINDOW_S)
    modest_rate = MODEST_PART * saturated.run.throughput / world.request_tokens
    runs: dict[str, list[Run]] = {policy: [] for policy in POLICIES}
    indices: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    for seed in range(num_rounds):
        alone = Arm(world, "fcfs", modest_rate, seed, is_alone=True)
        arms = {policy: Arm(world, policy, modest_rate, seed) for policy in POLICIES}
        take_turns([alone, *arms.values()], duration_s)
        for policy, arm in arms.items():
            runs[policy].append(arm.run)
            indices[policy] += arm.run.jain(alone.run)
    ttft_s = {
        policy: [x for run in done for x in run.modest_ttft_s] for policy, done in runs.items()
    }
    return {
        "jain": {policy: round(min(values), 4) for policy, values in indices.items()},
        "jain_median": {
            policy: round(statistics.median(values), 4) for policy, values in indices.items()
        },
        "throughput_ratio": {
            policy: round(
                statistics.median(
                    run.throughput / base.throughput
                    for run, base in zip(done, runs["fcfs"], strict=True)
                ),
                4,
            )
            for policy, done in runs.items()
        },
        "gap": {policy: max(run.gap() for run in done) for policy, done in runs.items()},
        "gap_bound": world.gap_bound,
        "modest_ttft_s": {
            policy: round(statistics.mean(values), 3) for policy, values in ttft_s.items()
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", default="real", choices=["real", "simulated"])
    parser.add_argument("--quick", action="store_true", help="one short round, about a minute")
    parser.add_argument("--model", default="smollm2", help="of the real world")
    args = parser.parse_args()
    world = real_world(args.model) if args.world == "real" else simulated_world()
    duration_s, num_rounds = 30.0, 3 if args.world == "real" else 12
    if args.quick:
        duration_s, num_rounds = 15.0, 1
    result = fairness_arms(world, duration_s=duration_s, num_rounds=num_rounds)
    for policy in POLICIES:
        print(
            f"{policy:>6}: jain {result['jain'][policy]:.3f} in the worst window,"
            f" {result['jain_median'][policy]:.3f} in the median one;"
            f" throughput x{result['throughput_ratio'][policy]:.3f};"
            f" modest ttft {result['modest_ttft_s'][policy]:.2f} s",
            file=sys.stderr,
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
