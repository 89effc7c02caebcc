"""Ragged batches over scattered blocks, for tests of attention back ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from evenflow.execution.attention import Attention, Rotation
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.kernels.reference import ReferenceAttention, rotated
from evenflow.execution.torch.kv_store import KVLayout, KVStore

NUM_LAYERS = 2
LAYER = 1


@dataclass(frozen=True)
class Case:
    """Requests as (context length, query length) and the shape of a model's attention.

    The store has the dtype; what is attended with, `activations`. Of a head all pairs are turned,
    unless `num_pairs` says how many.
    """

    requests: tuple[tuple[int, int], ...]
    num_kv_heads: int
    group_size: int
    head_dim: int
    block_size: int
    num_pairs: int | None = None
    window: int | None = None
    layout: KVLayout = "block_first"
    scattered: bool = True
    dtype: torch.dtype = torch.float32
    activations: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


@dataclass(frozen=True)
class Scene:
    """A store that holds the past of some requests, and the step that comes next.

    q and k are as they come out of a model, before the rotation.
    """

    case: Case
    store: KVStore
    batch: ForwardBatch
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    rotation: Rotation

    @property
    def turned_q(self) -> torch.Tensor:
        return rotated(self.q, self.rotation).to(self.q.dtype)

    def attend(self, attention: Attention) -> torch.Tensor:
        """Store the new tokens and attend."""
        q, batch = strided_copy(self.q), self.batch
        attention.rotate_store(LAYER, q, self.k, self.v, self.rotation, batch)
        return attention.attend(LAYER, q, batch, scale=self.case.scale, window=self.case.window)

    def partial(
        self, attention: Attention, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return attention.partial(
            LAYER,
            self.turned_q,
            self.batch,
            start,
            stop,
            scale=self.case.scale,
            window=self.case.window,
        )

    def exact(self, start: int = 0, stop: int = 1 << 30) -> tuple[torch.Tensor, torch.Tensor]:
        """Return output and log-sum-exp in fp64 of what the store holds and of the new tokens."""
        self.write()
        return ReferenceAttention(self.store).partial(
            LAYER,
            self.turned_q.double(),
            self.batch,
            start,
            stop,
            scale=self.case.scale,
            window=self.case.window,
        )

    def write(self) -> None:
        """Store the new keys, rotated, and values."""
        keys = rotated(self.k, self.rotation)
        self.store.write(LAYER, keys, self.v, self.batch.slot_mapping)

    def rows_of(self, out: torch.Tensor, request: int) -> torch.Tensor:
        """Return one request's part of an output."""
        starts = self.batch.query_starts.tolist()
        return out[starts[request] : starts[request + 1]]


def build(case: Case, names: tuple[int, ...] | None = None) -> Scene:
    """Make a scene. A request's numbers depend on its name alone; unused slots hold NaN."""
    names = tuple(range(len(case.requests))) if names is None else names
    num_blocks = [-(-context // case.block_size) for context, _ in case.requests]
    total = sum(num_blocks) + 3
    store = KVStore(
        total,
        NUM_LAYERS,
        case.num_kv_heads,
        case.head_dim,
        case.block_size,
        case.layout,
        case.dtype,
        case.device,
    )
    store.poison(range(total))
    order = torch.arange(total)
    if case.scattered:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(total))
    tables = torch.zeros(len(names), max(num_blocks), dtype=torch.int32)
    positions, slots, tokens = [], [], []
    for row, (name, (context, num_new)) in enumerate(zip(names, case.requests, strict=True)):
        first = sum(num_blocks[:row])
        tables[row, : num_blocks[row]] = order[first : first + num_blocks[row]]
        where = torch.arange(context)
        slot = tables[row].long()[where // case.block_size] * case.block_size
        slot += where % case.block_size
        heads = case.num_kv_heads * (case.group_size + 2)
        entries = request_entries(name, heads, case.head_dim)[:context].to(
            case.device, case.activations
        )
        _, k, v = entries.split(split_sizes(case), dim=1)
        past = context - num_new
        keys = rotated(k[:past], quarter_turns(case, where[:past].to(case.device)))
        store.write(LAYER, keys, v[:past], slot[:past].to(case.device))
        positions.append(where[past:])
        slots.append(slot[past:])
        tokens.append(entries[past:])
    starts = [0]
    for _, num_new in case.requests:
        starts.append(starts[-1] + num_new)
    contexts = [context for context, _ in case.requests]
    batch = ForwardBatch(
        token_ids=torch.zeros(starts[-1], dtype=torch.int64, device=case.device),
        positions=torch.cat(positions).to(case.device),
        slot_mapping=torch.cat(slots).to(case.device),
        query_starts=torch.tensor(starts, dtype=torch.int32, device=case.device),
        context_lens=torch.tensor(contexts, dtype=torch.int32, device=case.device),
        block_tables=tables.to(case.device),
    )
    q, k, v = torch.cat(tokens).split(split_sizes(case), dim=1)
    return Scene(case, store, batch, q, k, v, quarter_turns(case, batch.positions))


def quarter_turns(case: Case, positions: torch.Tensor) -> Rotation:
    """Return a rotation that no arithmetic rounds: each pair by a multiple of 90 degrees."""
    num_pairs = case.head_dim // 2 if case.num_pairs is None else case.num_pairs
    quarters = (positions[:, None] + torch.arange(num_pairs, device=positions.device)) % 4
    cos, sin = torch.tensor([[1.0, 0, -1, 0], [0, 1, 0, -1]], device=positions.device)
    return Rotation(cos[quarters], sin[quarters])


def strided_copy(x: torch.Tensor) -> torch.Tensor:
    """Return a copy that lies in memory as x does."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


@cache
def request_entries(name: int, heads: int, head_dim: int) -> torch.Tensor:
    """Return queries, keys and values of a request: (1000, heads, head_dim), fp32."""
    generator = torch.Generator().manual_seed(1000 + name)
    return torch.randn(1000, heads, head_dim, generator=generator)


def split_sizes(case: Case) -> list[int]:
    """Return how many of the heads are for queries, keys and values."""
    return [case.num_kv_heads * case.group_size, case.num_kv_heads, case.num_kv_heads]
