"""The engine as it runs on a GPU, against the CPU's; Triton's interpreter stands in for a GPU."""

from __future__ import annotations

from collections import defaultdict

import torch

from evenflow.core.clock import VirtualClock
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.kernels.cpu_attention import CpuPagedAttention
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.torch.decode_recordings import DecodeRecordings, powers_of_two
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.model_runner import ModelRunner
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.models.registry import build_model
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.dummy import DummyWeights
from evenflow.models.weights.placed import PlacedWeights
from evenflow.scheduling.policies.fcfs import Fcfs
from evenflow.scheduling.scheduler import Scheduler
from support.recording import recorder_for
from support.triton_interpreter import DEVICE

BLOCK_SIZE, NUM_BLOCKS, MAX_MODEL_LEN = 16, 12, 64
SPEC = ModelSpec(
    architecture="llama",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=32,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=MAX_MODEL_LEN,
)
REQUESTS = {
    "greedy": ([3] * 14, SamplingParams(temperature=0.0, max_tokens=4)),
    "cut": ([5, 9, 2], SamplingParams(temperature=1.0, top_p=0.7, top_k=30, seed=1, max_tokens=3)),
    "adjusted": (
        [7] * 5,
        SamplingParams(
            temperature=0.8,
            seed=2,
            logit_bias={11: 2.0},
            presence_penalty=0.5,
            logprobs=1,
            max_tokens=2,
        ),
    ),
}


def make_store(device: torch.device) -> KVStore:
    return KVStore(NUM_BLOCKS, 1, SPEC.num_kv_heads, SPEC.head_dim, BLOCK_SIZE, device=device)


def cpu_runner() -> ModelRunner:
    store = make_store(torch.device("cpu"))
    model = build_model(SPEC, DummyWeights(SPEC, seed=2), CpuOps())
    return ModelRunner(model, CpuPagedAttention(store), store)


def gpu_runner() -> ModelRunner:
    from evenflow.execution.kernels.triton.attention import TritonAttention
    from evenflow.execution.kernels.triton.triton_ops import TritonOps
    from evenflow.execution.torch.device_sampler import sample_on_device

    store = make_store(DEVICE)
    weights = PlacedWeights(DummyWeights(SPEC, seed=2), DEVICE, torch.float32)
    model = build_model(SPEC, weights, TritonOps())
    attention = TritonAttention(store)
    recordings = DecodeRecordings(
        lambda batch: model.forward(batch, attention),
        sizes=powers_of_two(4),
        max_num_blocks=MAX_MODEL_LEN // BLOCK_SIZE,
        device=DEVICE,
        record=recorder_for(DEVICE),
    )
    recordings.record_all()
    return ModelRunner(model, attention, store, sample=sample_on_device, recordings=recordings)


def serve(runner: ModelRunner, *, ahead: bool) -> dict[str, list[int | None]]:
    scheduler = Scheduler(
        Fcfs(), KVCacheManager(NUM_BLOCKS, BLOCK_SIZE), max_num_seqs=4, max_num_batched_tokens=16
    )
    start = runner.start if ahead else None
    limits = ModelLimits(MAX_MODEL_LEN, SPEC.vocab_size)
    engine = Engine(scheduler, runner, VirtualClock(), limits, start=start)
    for name, (prompt, params) in REQUESTS.items():
        engine.add_request(name, prompt, params)
    tokens: dict[str, list[int | None]] = defaultdict(list)
    while engine.has_work:
        for delta in engine.step():
            tokens[delta.request_id].append(delta.token_id)
    return tokens


def test_gpu_engine_gives_the_tokens_of_the_cpu_engine() -> None:
    expected = serve(cpu_runner(), ahead=False)
    assert [len(expected[name]) for name in REQUESTS] == [4, 3, 2]
    assert serve(gpu_runner(), ahead=True) == expected
