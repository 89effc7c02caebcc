"""Decode steps of the engine with Llama-3-8B on a GPU, beside what its memory allows."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass

from evenflow.core.clock import MonotonicClock
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.model import CausalLM
from evenflow.execution.torch.kv_store import KVStore
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.models.weights.shapes import tensor_shapes
from evenflow.scheduling.policies.fcfs import Fcfs
from evenflow.scheduling.scheduler import Scheduler
from gpu_model import (
    BLOCK_SIZE,
    DTYPE,
    LLAMA_3_8B,
    build_attention,
    build_llama_3_8b,
    build_runner,
    make_store,
    record,
)

PROMPT_TOKENS = 1024
NUM_STEPS = 96
BATCHES = [1, 4, 16, 32, 64, 128, 256]
QUICK_BATCHES = [1, 32]
COMPARED = [1, 32]
_MAX_MODEL_LEN = 2048
_STEP_TOKENS = 4096
_MAX_NUM_SEQS = 256


@dataclass(frozen=True)
class Arm:
    """How steps are run.

    Attributes:
        recorded: replays decode steps as graphs.
        ahead: starts steps before the tokens of the one before are known.
    """

    recorded: bool = True
    ahead: bool = True


class World:
    """The model and KV memory for the largest batch."""

    def __init__(self, max_num_seqs: int) -> None:
        self.model: CausalLM = build_llama_3_8b()
        blocks_each = -(-(PROMPT_TOKENS + NUM_STEPS + 1) // BLOCK_SIZE) + 1
        self.num_blocks = max_num_seqs * blocks_each
        self.store: KVStore = make_store(self.num_blocks)
        self.attention = build_attention(self.store)
        self.recordings = record(
            self.model, self.attention, self.store, max_num_seqs, _MAX_MODEL_LEN
        )

    def engine(self, arm: Arm) -> Engine:
        """Return an engine with nothing to do."""
        recordings = self.recordings if arm.recorded else None
        runner = build_runner(self.model, self.attention, self.store, recordings)
        scheduler = Scheduler(
            Fcfs(),
            KVCacheManager(self.num_blocks, BLOCK_SIZE, enable_prefix_caching=False),
            max_num_seqs=_MAX_NUM_SEQS,
            max_num_batched_tokens=_STEP_TOKENS,
        )
        limits = ModelLimits(_MAX_MODEL_LEN, LLAMA_3_8B.vocab_size)
        start = runner.start if arm.ahead else None
        return Engine(scheduler, runner, MonotonicClock(), limits, start=start)


def decode(copy_tbs: float, *, quick: bool) -> tuple[dict[str, dict[str, float]], float]:
    """Time decode steps by batch size, print and return them, and the share of equal tokens.

    Returns:
        By batch size: step_ms, tokens_per_s, bound_ms (weights and KV at the copy's bandwidth),
        ratio (bound / step), prefill_tokens_per_s; and by `-eager` and `-waiting` the same of steps
        launched kernel by kernel, and of steps started one after the other.
    """
    batches = QUICK_BATCHES if quick else BATCHES
    world = World(max(batches))
    cases: dict[str, dict[str, float]] = {}
    arms = [(str(batch), batch, Arm()) for batch in batches]
    arms += [(f"{batch}-waiting", batch, Arm(ahead=False)) for batch in COMPARED]
    arms += [(f"{batch}-eager", batch, Arm(recorded=False)) for batch in COMPARED]
    for name, batch, arm in arms:
        _serve(world, batch, arm)  # compiles what a new shape lets compile
        served = _serve(world, batch, arm)
        bound_s = _num_bytes(served.num_context_tokens) / (copy_tbs * 1e12)
        prefill_s, step_s = served.prefill_s, served.step_s
        cases[name] = {
            "step_ms": step_s * 1e3,
            "tokens_per_s": batch / step_s,
            "bound_ms": bound_s * 1e3,
            "ratio": bound_s / step_s,
            "prefill_tokens_per_s": batch * PROMPT_TOKENS / prefill_s,
        }
        figures = ", ".join(f"{key} {value:.4g}" for key, value in cases[name].items())
        print(f"llama-3-8b batch {name}: {figures}", flush=True)
    plain = _serve(world, 4, Arm(recorded=False, ahead=False)).tokens
    tokens = _serve(world, 4, Arm()).tokens
    pairs = [pair for name in plain for pair in zip(plain[name], tokens[name], strict=True)]
    same = sum(own == other for own, other in pairs) / len(pairs)
    print(f"tokens that graphs and steps started ahead leave as they are: {same:.1%}", flush=True)
    return cases, same


@dataclass(frozen=True)
class _Served:
    """What it took to serve a batch.

    Attributes:
        prefill_s: until everybody had a first token.
        step_s: a step in which everybody has a token.
        num_context_tokens: that such a step reads the KV of, on average.
        tokens: by request.
    """

    prefill_s: float
    step_s: float
    num_context_tokens: float
    tokens: dict[str, list[int]]


def _serve(world: World, batch: int, arm: Arm) -> _Served:
    engine, now_s = world.engine(arm), MonotonicClock().now_s
    draw = random.Random(batch)
    params = SamplingParams(temperature=0.0, max_tokens=NUM_STEPS, ignore_eos=True)
    for number in range(batch):
        prompt = draw.choices(range(LLAMA_3_8B.vocab_size), k=PROMPT_TOKENS)
        engine.add_request(str(number), prompt, params)
    tokens: dict[str, list[int]] = {str(number): [] for number in range(batch)}
    ends_s: list[float] = []
    contexts: list[int] = []
    prefill_s, began_s = 0.0, now_s()
    while engine.has_work:
        deltas = engine.step()
        for delta in deltas:
            if delta.token_id is None:
                raise SystemExit(f"a request ended without a token: {delta.error}")
            tokens[delta.request_id].append(delta.token_id)
        if not prefill_s and all(tokens.values()):
            prefill_s = now_s() - began_s
        if prefill_s and len(deltas) == batch:
            ends_s.append(now_s())
            contexts.append(sum(PROMPT_TOKENS + len(of) for of in tokens.values()))
    step_s = (ends_s[-1] - ends_s[0]) / (len(ends_s) - 1)
    return _Served(prefill_s, step_s, statistics.mean(contexts), tokens)


def _num_bytes(num_context_tokens: float) -> float:
    """Return what a step must read: all weights but the embedding's, and all KV."""
    shapes = tensor_shapes(LLAMA_3_8B)
    num_weights = sum(math.prod(shape) for shape in shapes.values())
    num_weights -= math.prod(shapes["model.embed_tokens.weight"])
    token_kv = 2 * LLAMA_3_8B.num_layers * LLAMA_3_8B.num_kv_heads * LLAMA_3_8B.head_dim
    return (num_weights + num_context_tokens * token_kv) * DTYPE.itemsize
