"""The mean hidden state of a prompt, against transformers' and whatever else goes on."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import numpy as np
import pytest
import torch
from transformers_twins import Twin, twin

from evenflow.core.clock import VirtualClock
from evenflow.core.pooling import PoolingParams
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.kernels.cpu_attention import CpuPagedAttention
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.model_runner import ModelRunner
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.models.registry import build_model
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from support.preempting import preempt

RAW = PoolingParams(normalize=False)
GREEDY = SamplingParams(temperature=0.0, max_tokens=20)
BLOCK_SIZE = 4


def make_engine(
    *, name: str = "llama", budget: int = 64, num_blocks: int = 64, caching: bool = True
) -> Engine:
    model = twin(name)
    spec = model.spec
    store = KVStore(num_blocks, spec.num_layers, spec.num_kv_heads, spec.head_dim, BLOCK_SIZE)
    store.poison(range(num_blocks))
    kv = KVCacheManager(num_blocks, BLOCK_SIZE, enable_prefix_caching=caching)
    scheduler = Scheduler(load_policy("fcfs"), kv, max_num_seqs=6, max_num_batched_tokens=budget)
    runner = ModelRunner(
        build_model(spec, model.weights, CpuOps()), CpuPagedAttention(store), store
    )
    limits = ModelLimits(64, spec.vocab_size, hidden_size=spec.hidden_size)
    return Engine(scheduler, runner, VirtualClock(), limits)


def prompts(count: int) -> list[list[int]]:
    """Prompts of 1 to 50 tokens; every second one begins like the others of its kind."""
    rng = np.random.default_rng(3)
    opening = rng.integers(0, 128, 12).tolist()
    lengths = [1, 50, *rng.integers(2, 38, count).tolist()][:count]
    return [
        (opening if number % 2 else []) + rng.integers(0, 128, length).tolist()
        for number, length in enumerate(lengths)
    ]


def finish(
    engine: Engine, *, preempt_at: Collection[int] = ()
) -> tuple[dict[str, bytes], dict[str, list]]:
    """Step to the end; return embeddings and tokens by request."""
    embeddings: dict[str, bytes] = {}
    tokens: dict[str, list] = {}
    num_steps = 0
    while engine.has_work:
        for delta in engine.step():
            if delta.embedding is not None:
                embeddings[delta.request_id] = delta.embedding
            elif delta.token_id is not None:
                tokens.setdefault(delta.request_id, []).append(delta.token_id)
        num_steps += 1
        scheduler = engine.scheduler
        if num_steps in preempt_at and scheduler.running:
            preempt(scheduler, scheduler.running[-1])
        scheduler.check_integrity()
    return embeddings, tokens


def embed_alone(prompt: list[int], params: PoolingParams = RAW, **settings: object) -> bytes:
    engine = make_engine(**settings)  # type: ignore[arg-type]
    engine.add_request("e", prompt, params)
    return finish(engine)[0]["e"]


@cache
def lone_run(prompt: tuple[int, ...]) -> tuple[bytes, list[int]]:
    engine = make_engine(caching=False)
    engine.add_request("g", prompt[:30], GREEDY)
    return embed_alone(list(prompt)), finish(engine)[1]["g"]


@torch.inference_mode()
def reference_mean(model: Twin, prompt: list[int]) -> np.ndarray:
    hidden = model.reference.model(torch.tensor([prompt])).last_hidden_state[0]
    return hidden.double().mean(dim=0).numpy()


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_moe"])
def test_pooled_vector_equals_transformers_mean_of_last_hidden_states(name: str) -> None:
    for prompt in prompts(4):
        pooled = np.frombuffer(embed_alone(prompt, name=name), "<f4")
        assert pooled == pytest.approx(reference_mean(twin(name), prompt), abs=1e-5)


def test_pooled_vector_is_scaled_to_length_one_by_default() -> None:
    prompt = prompts(2)[1]
    pooled = np.frombuffer(embed_alone(prompt, PoolingParams()), "<f4")
    mean = reference_mean(twin("llama"), prompt)
    assert pooled == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


@pytest.mark.parametrize("budget", [7, 8, 13, 49])
def test_pooled_vector_has_the_same_bits_for_every_chunk_size(budget: int) -> None:
    prompt = prompts(2)[1]
    assert embed_alone(prompt, budget=budget) == embed_alone(prompt)


@pytest.mark.parametrize("caching", [True, False], ids=["prefix-cache", "no-prefix-cache"])
@pytest.mark.parametrize("preempt_at", [(), range(0, 90, 3)], ids=["undisturbed", "preempted"])
def test_pooled_vectors_and_tokens_equal_lone_runs_when_mixed(
    preempt_at: Collection[int], caching: bool
) -> None:
    texts = prompts(8)
    engine = make_engine(budget=16, num_blocks=24, caching=caching)
    for number, prompt in enumerate(texts):
        engine.add_request(f"g{number}", prompt[:30], GREEDY)
        engine.add_request(f"e{number}", prompt, RAW)
    embeddings, tokens = finish(engine, preempt_at=preempt_at)
    assert engine.scheduler.num_preemptions > 0
    if caching:
        assert engine.scheduler.kv.stats().num_hit_tokens > 0
    for number, prompt in enumerate(texts):
        embedding, own_tokens = lone_run(tuple(prompt))
        assert embeddings[f"e{number}"] == embedding, number
        assert tokens[f"g{number}"] == own_tokens, number


def test_pooling_request_fails_alone_when_the_model_computes_nan() -> None:
    engine = make_engine(budget=16)
    model = engine._executor._model  # type: ignore[attr-defined]
    plain = model.forward

    def damaged(batch: object, attention: object, *, last_only: bool) -> torch.Tensor:
        hidden = plain(batch, attention, last_only=last_only)
        hidden[batch.token_ids == 9] = float("nan")  # type: ignore[attr-defined]
        return hidden

    model.forward = damaged
    engine.add_request("bad", [1, 9, *[2] * 30], RAW)
    engine.add_request("good", [1, 2, 3], RAW)
    ends = {delta.request_id: delta for _ in range(3) for delta in engine.step()}
    assert (ends["bad"].finish_reason, ends["good"].finish_reason) == ("error", "stop")
    assert "NaN" in (ends["bad"].error or "")
    assert ends["good"].embedding == embed_alone([1, 2, 3])
