"""Llama-3-8B with random weights on a GPU, for `context_switch.py`.

The engine's own model, scheduler and transfers run as they are. What is here is what it takes to
compute on a GPU at a speed that makes steps as short as they are there: weights that are drawn on
the device, and paged attention by torch's fused kernels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from context_switch_arms import BLOCK_SIZE, Arm, Limits, build_scheduler
from context_switch_load import LoadShape
from context_switch_run import Stage
from evenflow.core.clock import MonotonicClock
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.kernels.reference import ReferenceAttention
from evenflow.execution.kernels.torch_ops import TorchOps
from evenflow.execution.model import CausalLM
from evenflow.execution.torch.cuda_transfers import CudaTransfers
from evenflow.execution.torch.kv_store import KVLayout, KVStore
from evenflow.execution.torch.model_runner import build_batch
from evenflow.models.registry import build_model
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.shapes import tensor_shapes
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult

LLAMA_3_8B = ModelSpec(
    architecture="llama",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=500_000.0,
    max_position_embeddings=8192,
)


class DeviceWeights:
    """Random weights, drawn where they are used.

    Args:
        spec: the model.
        dtype: of all tensors; they lie on torch's default device.
    """

    def __init__(self, spec: ModelSpec, dtype: torch.dtype) -> None:
        self._shapes = tensor_shapes(spec)
        self._dtype = dtype

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        return frozenset(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self._shapes[name]

    def tensor(self, name: str) -> torch.Tensor:
        """Make one tensor."""
        if name.endswith("norm.weight"):
            return torch.ones(self._shapes[name], dtype=self._dtype)
        return torch.randn(self._shapes[name], dtype=self._dtype) * 0.02


class FusedAttention(ReferenceAttention):
    """Gathers blocks, then calls torch's fused attention: all decodes at once, prompts one by one.

    Call `begin` before each step.
    """

    def begin(self, batch: ForwardBatch) -> None:
        """Work out what is alike in all layers.

        Args:
            batch: `query_starts` and `context_lens` on the host, the rest on the device.
        """
        device = batch.block_tables.device
        starts, lengths = batch.query_starts.tolist(), batch.context_lens.tolist()
        counts = np.diff(starts)
        groups = [[index] for index in np.flatnonzero(counts > 1).tolist()]
        if decodes := np.flatnonzero(counts == 1).tolist():
            groups.append(decodes)
        self._groups = []
        for requests in groups:
            count = int(counts[requests[0]])
            rows = [starts[request] + at for request in requests for at in range(count)]
            length = max(lengths[request] for request in requests)
            tables = batch.block_tables[requests, : -(-length // self.store.block_size)].long()
            where = torch.arange(tables.shape[1] * self.store.block_size, device=device)
            rows_there = torch.tensor(rows, device=device)
            positions = batch.positions[rows_there].view(len(requests), 1, count, 1)
            self._groups.append((rows_there, tables, where <= positions))

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch: ForwardBatch,
        *,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor:
        """Store the step's keys and values, then attend to all of them (see `Attention.attend`)."""
        if window is not None:
            raise NotImplementedError("Llama has no windows")
        self.store.write(layer, k, v, batch.slot_mapping)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for rows, tables, sees in self._groups:
            keys, values = (
                cache[tables].transpose(1, 2).flatten(2, 3)
                for cache in (self.store.keys(layer), self.store.values(layer))
            )
            queries = q[rows].view(len(tables), -1, *q.shape[1:]).transpose(1, 2)
            found = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=sees, scale=scale, enable_gqa=True
            )
            out[rows] = found.transpose(1, 2).flatten(0, 1)
        return out


class GpuExecutor:
    """Computes steps and samples greedily.

    Args:
        model: the network.
        store: the KV tensors, which say where all of it happens.
    """

    def __init__(self, model: CausalLM, store: KVStore) -> None:
        self._model = model
        self._store = store
        self._attention = FusedAttention(store)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the plan's tokens and sample where a request's tokens end."""
        self._store.copy_blocks(plan.copies)
        batch = build_batch(plan, self._store.block_size)
        ends = batch.query_starts[1:] - 1
        moved = {
            name: getattr(batch, name).to(self._store.data.device)
            for name in ("token_ids", "positions", "slot_mapping", "block_tables")
        }
        batch = replace(batch, **moved)
        self._attention.begin(batch)
        hidden = self._model.forward(batch, self._attention)
        result = StepResult([NO_TOKEN] * len(plan.requests))
        sampling = [
            index
            for index, (request, count) in enumerate(
                zip(plan.requests, plan.num_new_tokens, strict=True)
            )
            if request.num_computed_tokens + count == request.num_tokens
        ]
        rows = hidden[ends[sampling].to(hidden.device)]
        # The host waits here, and so a step takes as long as its work on the device.
        for index, token_id in zip(
            sampling, self._model.logits(rows).argmax(-1).tolist(), strict=True
        ):
            result.token_ids[index] = token_id
        if not sampling:
            torch.cuda.synchronize()
        return result


class GpuWorld:
    """A CUDA device.

    Args:
        shape: of the load.
        num_blocks: KV blocks on the device, and four times as many in pinned memory.
    """

    def __init__(self, shape: LoadShape, num_blocks: int) -> None:
        if not torch.cuda.is_available():
            raise SystemExit("--world gpu needs a CUDA device, and torch finds none")
        self.shape = shape
        self._limits = Limits(
            num_blocks=num_blocks,
            num_host_blocks=4 * num_blocks,
            max_num_seqs=256,
            max_num_batched_tokens=512,
        )
        with torch.device("cuda"):
            weights = DeviceWeights(LLAMA_3_8B, torch.bfloat16)
            self._model = build_model(LLAMA_3_8B, weights, TorchOps())
        self._stores: dict[KVLayout, tuple[KVStore, KVStore]] = {}

    @property
    def num_kv_tokens(self) -> int:
        """Tokens for which there is KV memory on the device."""
        return self._limits.num_blocks * BLOCK_SIZE

    def stage(self, arm: Arm) -> Stage:
        """Return an engine that switches as an arm does, with nothing to do yet."""
        clock = MonotonicClock()
        device, host = self._stores_of("block_first" if arm.is_block_first else "layer_first")
        scheduler = build_scheduler(arm, self._limits, CudaTransfers(device, host, clock=clock))
        limits = ModelLimits(self.shape.max_tokens + 1, LLAMA_3_8B.vocab_size)
        engine = Engine(scheduler, GpuExecutor(self._model, device), clock, limits)
        return Stage(engine, clock, limits.vocab_size)

    def _stores_of(self, layout: KVLayout) -> tuple[KVStore, KVStore]:
        """Return the memory of a layout; pinning it takes long, so it is kept."""
        if layout not in self._stores:
            num_blocks, num_host_blocks = self._limits.num_blocks, self._limits.num_host_blocks
            self._stores[layout] = (
                _store(num_blocks, layout, "cuda"),
                _store(num_host_blocks, layout, "cpu", pinned=True),
            )
            self._stores[layout][0].data.zero_()  # what is masked out must be no NaN
        return self._stores[layout]


def _store(num_blocks: int, layout: KVLayout, device: str, *, pinned: bool = False) -> KVStore:
    return KVStore(
        num_blocks,
        LLAMA_3_8B.num_layers,
        LLAMA_3_8B.num_kv_heads,
        LLAMA_3_8B.head_dim,
        BLOCK_SIZE,
        layout,
        torch.bfloat16,
        device,
        pinned=pinned,
    )
