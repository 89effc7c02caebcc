"""Real models whose weights stay as their files store them, multiplied by int8 activations, with
keys and values of bf16 or int8."""

from __future__ import annotations

import numpy as np
import pytest

from evenflow import LLM, SamplingParams
from evenflow.engine.outputs import CompletionOutput
from evenflow.execution.kernels.native.library import native_kernels
from support.preempting import preempt

pytestmark = pytest.mark.model

PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPTS = [
    "The capital of France is",
    "a",
    "def merge(left, right):",
    "One, two, three,",
    "Pea soup for four\n\nIngredients:\n- 300 g split peas\n- 1 onion\n-" * 3,
    "Der Zug nach München hatte Verspätung, und auf dem Bahnsteig",
    "SELECT name, COUNT(*) AS num_orders\nFROM customers\nJOIN orders ON",
    "Five things to pack for a week in the mountains:\n1. A rain jacket\n2.",
]


def load(name: str, kv_cache_dtype: str = "auto") -> LLM:
    if native_kernels() is None:
        pytest.skip("no native kernels on this machine")
    settings = {"num_blocks_override": 64, "max_model_len": 512, "enable_prefix_caching": False}
    return LLM(name, linear="w4a8", kv_cache_dtype=kv_cache_dtype, **settings)


def tokens(llm: LLM, prompts: list[str]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, PARAMS)]


@pytest.fixture(scope="module", params=["bf16", "int8"])
def llm(request: pytest.FixtureRequest) -> LLM:
    return load("smollm2", request.param)


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[list[int]]:
    return [tokens(llm, [prompt])[0] for prompt in PROMPTS]


def test_tokens_in_a_batch_equal_those_of_lone_runs(llm: LLM, alone: list[list[int]]) -> None:
    assert tokens(llm, PROMPTS) == alone


def test_tokens_under_forced_preemption_equal_those_of_lone_runs(
    llm: LLM, alone: list[list[int]]
) -> None:
    rng = np.random.default_rng(3)
    engine, scheduler = llm.engine, llm.engine.scheduler
    results = {f"r{number}": CompletionOutput(0) for number in range(len(PROMPTS))}
    for request_id, prompt in zip(results, PROMPTS, strict=True):
        engine.add_request(request_id, llm.tokenizer.encode(prompt), PARAMS)
    num_forced = 0
    while engine.has_work:
        if scheduler.running and rng.random() < 0.6:
            preempt(scheduler, scheduler.running[int(rng.integers(len(scheduler.running)))])
            num_forced += 1
        for delta in engine.step():
            results[delta.request_id].add(delta)
    assert num_forced > 5
    assert [result.token_ids for result in results.values()] == alone


@pytest.mark.slow
def test_gemma3_of_mixed_types_counts_on() -> None:
    (output,) = load("gemma3-270m").generate("One, two, three,", PARAMS)
    assert output.outputs[0].text.startswith(" four, five, six,")
