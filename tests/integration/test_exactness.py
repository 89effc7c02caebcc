"""A request's tokens do not depend on who shares its batch or on what happens to its memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from evenflow import LLM, SamplingParams
from evenflow.core.clock import VirtualClock
from evenflow.core.rng import derive_seed
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.engine.outputs import CompletionOutput
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.policy import Policy, load_policy
from evenflow.scheduling.scheduler import Scheduler
from support.preempting import preempt

pytestmark = pytest.mark.model

NUM_REQUESTS = 40
NUM_OUTPUT = 16
BLOCK_SIZE = 16


class RandomChunks(Policy):
    """Divides every step at random: any subset of the requests, any part of their prompts."""

    rank_changes_with_time = True

    def __init__(self, rng: np.random.Generator) -> None:
        self._inner = load_policy("fcfs")
        self._rng = rng

    def rank(self, requests: Any, view: Any) -> Any:
        return [(float(self._rng.random()),) for _ in requests]

    def admit(self, request: Any, memory: Any) -> bool:
        """Admit into the last block, so that memory runs out often."""
        return True

    def victims(self, residents: Any) -> Any:
        return self._inner.victims(residents)

    def compose(self, residents: Any, token_budget: int) -> list[int]:
        left = token_budget
        counts = []
        for request in residents:
            most = min(request.num_tokens - request.num_computed_tokens, left)
            counts.append(int(self._rng.integers(0, most + 1)))
            left -= counts[-1]
        if residents and not any(counts):
            counts[0] = 1
        return counts


def make_prompts(llm: LLM) -> list[list[int]]:
    """Prompts of 3 to 90 tokens; some begin alike, so that the prefix cache has hits."""
    rng = np.random.default_rng(7)
    opening = llm.tokenizer.encode(
        "Once upon a time, in a small town by the sea, there lived an old"
    )
    opening = (opening * 4)[:48]
    prompts = []
    for number in range(NUM_REQUESTS):
        own = rng.integers(1000, 20000, size=int(rng.integers(3, 42))).tolist()
        prompts.append(opening + own if number % 3 == 0 else own)
    return prompts


def make_params(number: int) -> SamplingParams:
    """Greedy, plain sampling, and sampling with everything on, in turn."""
    base: dict[str, Any] = {"max_tokens": NUM_OUTPUT, "ignore_eos": True, "seed": number}
    return (
        SamplingParams(temperature=0.0, **base),
        SamplingParams(temperature=0.9, **base),
        SamplingParams(temperature=1.2, top_k=50, top_p=0.9, min_p=0.01, **base),
        SamplingParams(
            temperature=0.8,
            repetition_penalty=1.3,
            presence_penalty=0.4,
            frequency_penalty=0.2,
            logit_bias={100: 2.0},
            min_tokens=3,
            **base,
        ),
    )[number % 4]


def make_engine(llm: LLM, *, num_blocks: int, budget: int, caching: bool, policy: Policy) -> Engine:
    """An engine on the loaded model, with its own memory management and less of it."""
    kv = KVCacheManager(num_blocks, BLOCK_SIZE, enable_prefix_caching=caching)
    scheduler = Scheduler(policy, kv, max_num_seqs=24, max_num_batched_tokens=budget)
    limits = ModelLimits(2048, llm.runtime.spec.vocab_size)
    return Engine(scheduler, llm.engine._executor, VirtualClock(), limits)


def collect(engine: Engine, results: dict[str, CompletionOutput]) -> None:
    for delta in engine.step():
        results[delta.request_id].add(delta)


@pytest.fixture(scope="module")
def prompts(smollm2: LLM) -> list[list[int]]:
    return make_prompts(smollm2)


@pytest.fixture(scope="module")
def alone(smollm2: LLM, prompts: list[list[int]]) -> list[list[int]]:
    """Every request's tokens when it has the engine to itself."""
    results = []
    for number, prompt in enumerate(prompts):
        engine = make_engine(
            smollm2, num_blocks=64, budget=2048, caching=False, policy=load_policy("fcfs")
        )
        result = {"r": CompletionOutput(0)}
        engine.add_request("r", prompt, make_params(number))
        while engine.has_work:
            collect(engine, result)
        results.append(result["r"].token_ids)
    return results


@pytest.mark.parametrize("caching", [True, False], ids=["prefix-cache", "no-prefix-cache"])
@pytest.mark.parametrize("seed", [1, 2])
def test_tokens_equal_a_lone_run_under_random_arrival_chunks_and_preemption(
    smollm2: LLM, prompts: list[list[int]], alone: list[list[int]], caching: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    engine = make_engine(
        smollm2, num_blocks=40, budget=64, caching=caching, policy=RandomChunks(rng)
    )
    scheduler = engine.scheduler
    results = {f"r{number}": CompletionOutput(0) for number in range(NUM_REQUESTS)}
    to_come = list(rng.permutation(NUM_REQUESTS))
    num_forced = 0
    while engine.has_work or to_come:
        while to_come and rng.random() < 0.6:
            number = int(to_come.pop())
            engine.add_request(f"r{number}", prompts[number], make_params(number))
        if scheduler.running and rng.random() < 0.15:
            victim = scheduler.running[int(rng.integers(len(scheduler.running)))]
            preempt(scheduler, victim)
            num_forced += 1
        collect(engine, results)
        scheduler.check_integrity()
        poison_unused(smollm2, scheduler.kv)
    assert num_forced > 5
    assert scheduler.num_preemptions > num_forced, "memory never ran out by itself"
    if caching:
        assert scheduler.kv.stats().num_hit_tokens > 0
    for number, expected in enumerate(alone):
        assert results[f"r{number}"].token_ids == expected, f"request {number}"


def poison_unused(llm: LLM, kv: KVCacheManager) -> None:
    """Fill every block without content with NaN: whoever reads one gives itself away."""
    free = [
        block_id
        for extent in kv._pool._allocator.free_extents()
        for block_id in extent.block_ids
        if not kv._pool.is_cached(block_id)
    ]
    llm.engine._executor._store.poison(free)


def test_tokens_do_not_depend_on_the_number_of_threads(
    smollm2: LLM, prompts: list[list[int]], alone: list[list[int]]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        engine = make_engine(
            smollm2, num_blocks=256, budget=512, caching=False, policy=load_policy("fcfs")
        )
        results = {f"r{number}": CompletionOutput(0) for number in range(8)}
        for number in range(8):
            engine.add_request(f"r{number}", prompts[number], make_params(number))
        while engine.has_work:
            collect(engine, results)
    finally:
        torch.set_num_threads(threads)
    assert [r.token_ids for r in results.values()] == alone[:8]


def test_tokens_of_siblings_equal_lone_runs_when_they_share_a_prompt(
    smollm2: LLM, prompts: list[list[int]]
) -> None:
    """The prompt ends inside a block, so every sibling writes into a block that all share."""
    prompt = prompts[0][: 2 * BLOCK_SIZE + 5]
    base: dict[str, Any] = {"temperature": 1.0, "max_tokens": 40, "ignore_eos": True}
    policy = load_policy("fcfs")
    engine = make_engine(smollm2, num_blocks=11, budget=40, caching=False, policy=policy)
    engine.add_request("r", prompt, SamplingParams(n=4, seed=5, **base))
    siblings = [CompletionOutput(index) for index in range(4)]
    while engine.has_work:
        for delta in engine.step():
            siblings[delta.index].add(delta)
        poison_unused(smollm2, engine.scheduler.kv)
    assert engine.scheduler.num_preemptions > 0
    for index, sibling in enumerate(siblings):
        lone = make_engine(smollm2, num_blocks=11, budget=512, caching=False, policy=policy)
        lone.add_request(
            "r", prompt, SamplingParams(seed=derive_seed(5, index) if index else 5, **base)
        )
        result = {"r": CompletionOutput(0)}
        while lone.has_work:
            collect(lone, result)
        assert sibling.token_ids == result["r"].token_ids
