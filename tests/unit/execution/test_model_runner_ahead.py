"""Steps of a real model that are started ahead, or replayed from recordings: the same bits."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch

from evenflow.core.clock import VirtualClock
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.attention import Attention, Rotation
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.kernels.cpu_attention import CpuPagedAttention
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.model import CausalLM
from evenflow.execution.torch.decode_recordings import DecodeRecordings, powers_of_two
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.model_runner import ModelRunner
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.models.registry import build_model
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.dummy import DummyWeights
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from support.recording import record_on_cpu

BLOCK_SIZE = 4
MAX_MODEL_LEN = 64
CPU = torch.device("cpu")
SPEC = ModelSpec(
    architecture="llama",
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=MAX_MODEL_LEN,
    eos_token_ids=tuple(range(5, 35)),
)
PARAMS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=24),
    "drawn": SamplingParams(temperature=1.0, seed=3, max_tokens=30, min_tokens=9),
    "cut": SamplingParams(temperature=0.9, top_p=0.8, top_k=20, seed=4, max_tokens=17),
    "scored": SamplingParams(temperature=1.0, logprobs=2, seed=5, max_tokens=20, ignore_eos=True),
    "penalised": SamplingParams(temperature=1.0, presence_penalty=1.0, seed=6, max_tokens=6),
    "biased": SamplingParams(temperature=0.0, logit_bias={9: 50.0}, max_tokens=12),
}


class PaddedAttention:
    """Attends for the requests of a batch that have a context, and checks that the rest is padding.

    Args:
        attention: gets a batch without padding.
    """

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self.num_padded = 0

    def rotate_store(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rotation: Rotation,
        batch: ForwardBatch,
    ) -> None:
        count = int((batch.context_lens > 0).sum())
        self.num_padded += batch.num_requests - count
        assert batch.query_starts.tolist() == list(range(batch.num_requests + 1))
        assert (batch.slot_mapping[:count] >= 0).all()
        assert (batch.slot_mapping[count:] == -1).all()
        if count:
            self._attention.rotate_store(
                layer,
                q[:count],
                k[:count],
                v[:count],
                Rotation(rotation.cos[:count], rotation.sin[:count]),
                batch.first(count),
            )

    def attend(
        self, layer: int, q: torch.Tensor, batch: ForwardBatch, **options: Any
    ) -> torch.Tensor:
        count = int((batch.context_lens > 0).sum())
        out = torch.zeros(q.shape)
        if count:
            out[:count] = self._attention.attend(layer, q[:count], batch.first(count), **options)
        return out


@cache
def model() -> CausalLM:
    return build_model(SPEC, DummyWeights(SPEC, seed=1), CpuOps())


def make_runner(*, recorded: bool = False) -> tuple[ModelRunner, PaddedAttention]:
    store = KVStore(64, SPEC.num_layers, SPEC.num_kv_heads, SPEC.head_dim, BLOCK_SIZE)
    attention = CpuPagedAttention(store)
    padded = PaddedAttention(attention)
    recordings = None
    if recorded:
        recordings = DecodeRecordings(
            lambda batch: model().forward(batch, padded),  # type: ignore[arg-type]
            sizes=powers_of_two(4),
            max_num_blocks=MAX_MODEL_LEN // BLOCK_SIZE,
            device=CPU,
            record=record_on_cpu,
        )
    return ModelRunner(model(), attention, store, recordings=recordings), padded


def serve(*, ahead: bool, recorded: bool = False) -> tuple[dict[str, list[Any]], PaddedAttention]:
    """Serve requests of every kind that come one after the other; return all that came out."""
    runner, padded = make_runner(recorded=recorded)
    scheduler = Scheduler(
        load_policy("fcfs"),
        KVCacheManager(64, BLOCK_SIZE),
        max_num_seqs=5,
        max_num_batched_tokens=16,
    )
    limits = ModelLimits(MAX_MODEL_LEN, SPEC.vocab_size, frozenset(SPEC.eos_token_ids))
    start = runner.start if ahead else None
    engine = Engine(scheduler, runner, VirtualClock(), limits, start=start)
    waiting = [(f"{name}-{at}", params) for at in range(2) for name, params in PARAMS.items()]
    seen: dict[str, list[Any]] = defaultdict(list)
    while waiting or engine.has_work:
        if waiting and engine.times.num_steps % 5 == 0:
            name, params = waiting.pop(0)
            engine.add_request(name, [len(waiting), 17, len(name)] * 3, params)
        for delta in engine.step():
            seen[delta.request_id].append((delta.token_id, delta.logprobs, delta.finish_reason))
    return seen, padded


def test_steps_started_ahead_give_the_same_tokens_and_logprobs() -> None:
    expected, _ = serve(ahead=False)
    assert {end for *_, (_, _, end) in expected.values()} == {"stop", "length"}
    assert serve(ahead=True)[0] == expected


@pytest.mark.parametrize("ahead", [False, True])
def test_replayed_steps_give_the_same_tokens_and_logprobs(ahead: bool) -> None:
    seen, padded = serve(ahead=ahead, recorded=True)
    assert seen == serve(ahead=False)[0]
    assert padded.num_padded > 0


def test_recordings_cover_steps_of_one_token_each_up_to_their_largest_size() -> None:
    runner, _ = make_runner(recorded=True)
    recordings = runner._recordings
    assert recordings is not None
    assert recordings.covers([1])
    assert recordings.covers([1] * 4)
    assert not recordings.covers([1] * 5)
    assert not recordings.covers([1, 2])


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 8]), (8, [1, 2, 4, 8])]
)
def test_powers_of_two_go_up_to_enough(max_num_seqs: int, sizes: list[int]) -> None:
    assert powers_of_two(max_num_seqs) == sizes
