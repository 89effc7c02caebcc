"""Engines whose decode steps are replayed on the CPU generate what others do, bit for bit."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch

from evenflow.core.clock import VirtualClock
from evenflow.core.sampling import SamplingParams
from evenflow.engine.backends import Backend
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.model_runner import ModelRunner
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.models.registry import build_model
from evenflow.models.spec import ModelSpec, MoeSpec
from evenflow.models.weights.dummy import DummyWeights
from evenflow.models.weights.rounding import RoundedWeights
from evenflow.models.weights.source import WeightSource
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from support.kernel_sets import kernel_set

BLOCK_SIZE = 4
MAX_MODEL_LEN = 64
LLAMA = ModelSpec(
    architecture="llama",
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=MAX_MODEL_LEN,
    tie_word_embeddings=True,
)
MOE = MoeSpec(num_experts=4, num_experts_per_tok=2, intermediate_size=32, norm_topk_prob=True)
RECORDED = {
    "llama": LLAMA,
    "qwen2": replace(LLAMA, architecture="qwen2", attention_bias=True, tie_word_embeddings=False),
    "qwen3": replace(LLAMA, architecture="qwen3"),
    "gemma3": replace(
        LLAMA,
        architecture="gemma3",
        activation="gelu_tanh",
        layer_windows=(6, None),
        local_rope_theta=1_000.0,
    ),
}
LOGPROBS = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, logprobs=3)


def runner_of(
    spec: ModelSpec, *, records: bool, precision: str = "w4a8", name: str = "native-portable"
) -> ModelRunner:
    kernels = kernel_set(name)
    dtype = torch.float32
    backend = Backend(
        torch.device("cpu"), dtype, dtype, "cpu", kernels=kernels, records_decode=records
    )
    weights: WeightSource = DummyWeights(spec, seed=1)
    if precision == "w4a8":
        weights = RoundedWeights(weights, spec, "w4a8")
    store = KVStore(64, spec.num_layers, spec.num_kv_heads, spec.head_dim, BLOCK_SIZE)
    model = build_model(spec, weights, backend.ops())
    return backend.runner(model, store, max_num_seqs=4, max_model_len=MAX_MODEL_LEN)


def serve(runner: ModelRunner, spec: ModelSpec) -> dict[str, list[Any]]:
    """Serve requests that come one after the other, so that every number of them runs at once."""
    scheduler = Scheduler(
        load_policy("fcfs"),
        KVCacheManager(64, BLOCK_SIZE),
        max_num_seqs=4,
        max_num_batched_tokens=9,
    )
    limits = ModelLimits(MAX_MODEL_LEN, spec.vocab_size)
    engine = Engine(scheduler, runner, VirtualClock(), limits)
    waiting = [[number, 17, 3] * (1 + 3 * number) for number in range(1, 6)]
    seen: dict[str, list[Any]] = defaultdict(list)
    while waiting or engine.has_work:
        if waiting and engine.times.num_steps % 7 == 0:
            engine.add_request(f"{len(waiting)}", waiting.pop(), LOGPROBS)
        for delta in engine.step():
            seen[delta.request_id].append((delta.token_id, delta.logprobs))
    return seen


@pytest.mark.parametrize("name", RECORDED)
def test_replayed_steps_give_the_same_tokens_and_logprobs(name: str) -> None:
    spec = RECORDED[name]
    runner = runner_of(spec, records=True)
    assert serve(runner, spec) == serve(runner_of(spec, records=False), spec)
    assert runner._recordings is not None
    assert sorted(runner._recordings._recordings) == [1, 2, 3, 4]


def test_replayed_steps_give_the_same_on_this_processors_kernels() -> None:
    best = serve(runner_of(LLAMA, records=True, name="native-avx2"), LLAMA)
    assert best.keys() == {"1", "2", "3", "4", "5"}
    assert best == serve(runner_of(LLAMA, records=False, name="native-avx2"), LLAMA)


@pytest.mark.parametrize(
    ("spec", "precision"),
    [(LLAMA, "exact"), (replace(LLAMA, architecture="mixtral", moe=MOE), "w4a8")],
    ids=["fp32 linears", "experts"],
)
def test_steps_that_cannot_be_recorded_run_as_they_are(
    spec: ModelSpec, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    runner = runner_of(spec, records=True, precision=precision)
    assert serve(runner, spec) == serve(runner_of(spec, records=False, precision=precision), spec)
    assert [m for m in caplog.messages if "decode steps are not recorded: aten" in m]
    assert runner._recordings is not None
    assert not runner._recordings._recordings
