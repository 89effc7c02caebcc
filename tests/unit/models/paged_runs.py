"""Runs a model on ragged batches over scattered blocks, the way the engine would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from evenflow.execution.attention import Attention
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.kernels.cpu_attention import CpuPagedAttention
from evenflow.execution.kernels.cpu_kernels import CpuKernels
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.kernels.native.library import native_kernels
from evenflow.execution.kernels.reference import ReferenceAttention
from evenflow.execution.kernels.torch_ops import TorchOps
from evenflow.execution.model import CausalLM
from evenflow.execution.ops import Ops
from evenflow.execution.torch.kv_store import KVStore
from evenflow.models.registry import build_model
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.source import WeightSource

BLOCK_SIZE = 16
BLOCKS_PER_REQUEST = 4
MAX_REQUESTS = 4


def native() -> CpuKernels:
    """Return the fastest kernels that this machine runs; skip the test where there are none."""
    return native_kernels() or pytest.skip("no native kernels on this machine")


Backend = tuple[Callable[[], Ops], Callable[[KVStore], Attention]]
BACKENDS: dict[str, Backend] = {
    "reference": (TorchOps, ReferenceAttention),
    "cpu": (CpuOps, CpuPagedAttention),
    "native": (lambda: CpuOps(native()), lambda store: CpuPagedAttention(store, native())),
}


@dataclass
class PagedRun:
    """A model with KV memory for a few requests, known by their numbers from 0."""

    model: CausalLM
    attention: Attention
    computed: list[int] = field(default_factory=lambda: [0] * MAX_REQUESTS)

    @torch.inference_mode()
    def step(self, chunks: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """Run the next tokens of some requests at once; return (num_tokens, vocab_size) of each."""
        hidden = self.model.forward(self.take(chunks), self.attention)
        counts = [len(ids) for ids in chunks.values()]
        return dict(zip(chunks, self.model.logits(hidden).split(counts), strict=True))

    def take(self, chunks: dict[int, list[int]]) -> ForwardBatch:
        """Lay out the next tokens of some requests, which count as computed from now on."""
        positions = {
            request: torch.arange(self.computed[request], self.computed[request] + len(ids))
            for request, ids in chunks.items()
        }
        for request, ids in chunks.items():
            self.computed[request] += len(ids)
        starts = torch.tensor([0, *(len(ids) for ids in chunks.values())]).cumsum(0)
        return ForwardBatch(
            token_ids=torch.tensor([token for ids in chunks.values() for token in ids]),
            positions=torch.cat(list(positions.values())),
            slot_mapping=torch.cat([slots(request, positions[request]) for request in chunks]),
            query_starts=starts.int(),
            context_lens=torch.tensor([self.computed[request] for request in chunks]).int(),
            block_tables=torch.stack([block_table(request) for request in chunks]).int(),
        )


def paged_run(spec: ModelSpec, weights: WeightSource, backend: str) -> PagedRun:
    make_ops, make_attention = BACKENDS[backend]
    store = KVStore(
        MAX_REQUESTS * BLOCKS_PER_REQUEST,
        spec.num_layers,
        spec.num_kv_heads,
        spec.head_dim,
        BLOCK_SIZE,
    )
    store.poison(range(store.num_blocks))
    return PagedRun(build_model(spec, weights, make_ops()), make_attention(store))


def block_table(request: int) -> torch.Tensor:
    """Return block ids that lie neither together nor in order."""
    nth = request * BLOCKS_PER_REQUEST + torch.arange(BLOCKS_PER_REQUEST)
    return (nth * 7 + 5) % (MAX_REQUESTS * BLOCKS_PER_REQUEST)


def slots(request: int, positions: torch.Tensor) -> torch.Tensor:
    return block_table(request)[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
