"""`Attention` on the CPU, reading a KV store of fp32, bf16 or int8 in place; sums are fp32.

Invariant:
    A result row has the same bits in decode and in any prefill chunk, alone and in any batch, for
    any placement of its blocks, either layout and any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evenflow.core.errors import ConfigError
from evenflow.execution.attention import Rotation
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.kernels.attention_job import (
    ATTENTION_LAYOUT,
    KV_TYPES,
    MOST_CODES,
    AttentionJob,
    record_bytes,
    scratch_bytes,
    shares_splits,
)
from evenflow.execution.kernels.cpu_kernels import CpuKernels, portable_kernels
from evenflow.execution.kernels.jobs import ROTATE_STORE_LAYOUT, RotateStoreJob
from evenflow.execution.kernels.parallel import Arguments, ThreadTeam
from evenflow.execution.torch.kv_rows import KV_DTYPES
from evenflow.execution.torch.kv_store import KVStore

_UNLIMITED = 1 << 62
_ROWS_PER_ITEM = 64
_SPLIT_BYTES = 65_536  # of keys; with as many of values, a split stays in the second-level cache
_ROTATE_STORE_SERIAL_BELOW = 16_384  # floats to turn or copy
_SERIAL_BELOW = 1 << 18  # multiplications; under this, waking threads costs more than it gains


@dataclass(slots=True, frozen=True)
class _Plan:
    """How a batch is cut into work items; the same for all its layers.

    Attributes:
        items: (num_items, 3), int32: request, first token, number of tokens; the costliest first.
        max_rows: rows of the largest item.
        num_pairs: pairs of a query token and a key, at most.
    """

    items: torch.Tensor
    max_rows: int
    num_pairs: int


class CpuPagedAttention:
    """Paged attention over an fp32, bf16 or int8 store. One thread at a time may use it.

    Args:
        store: the KV memory it writes to and reads from.
        kernels: what computes; the portable kernels by default.
        team: the threads to use; its own by default.

    Raises:
        ConfigError: the kernels cannot read the store.
    """

    def __init__(
        self, store: KVStore, kernels: CpuKernels | None = None, team: ThreadTeam | None = None
    ) -> None:
        self.store = store
        self._kernels = kernels or portable_kernels()
        self._kv_type = _kv_type(store, self._kernels)
        self._cache_addresses = tuple(
            (store.keys(layer).data_ptr(), store.values(layer).data_ptr())
            for layer in range(store.num_layers)
        )
        element = store.data.dtype.itemsize
        self._cache_strides = tuple(element * stride for stride in store.keys(0).stride()[:3])
        # The size of a split decides the order of sums, so it depends on the model alone.
        self._split_keys = max(32, min(1024, _SPLIT_BYTES // (4 * store.head_dim) // 8 * 8))
        self._record_bytes = record_bytes(store.head_dim)
        self._team = team or ThreadTeam()
        self._attention_words = Arguments(ATTENTION_LAYOUT)
        self._rotate_store_words = Arguments(ROTATE_STORE_LAYOUT)
        self._planned: tuple[ForwardBatch, _Plan] | None = None
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._records = torch.empty(0, dtype=torch.uint8)
        self._finished = torch.zeros(0, dtype=torch.int64)

    def rotate_store(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rotation: Rotation,
        batch: ForwardBatch,
    ) -> None:
        """Rotate q in place, and store k, rotated, and v (see `Attention.rotate_store`)."""
        keys, values = self._cache_addresses[layer]
        block_bytes, head_bytes, token_bytes = self._cache_strides
        job = RotateStoreJob(
            num_tokens=q.shape[0],
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_dim=q.shape[2],
            num_pairs=rotation.cos.shape[1],
            queries=q.data_ptr(),
            query_token_bytes=4 * q.stride(0),
            query_head_bytes=4 * q.stride(1),
            source_keys=k.data_ptr(),
            key_token_bytes=4 * k.stride(0),
            key_head_bytes=4 * k.stride(1),
            source_values=v.data_ptr(),
            value_token_bytes=4 * v.stride(0),
            value_head_bytes=4 * v.stride(1),
            cos=rotation.cos.data_ptr(),
            sin=rotation.sin.data_ptr(),
            table_token_bytes=4 * rotation.cos.stride(0),
            slots=batch.slot_mapping.data_ptr(),
            keys=keys,
            values=values,
            block_bytes=block_bytes,
            head_bytes=head_bytes,
            token_bytes=token_bytes,
            block_size=self.store.block_size,
            kv_type=self._kv_type,
        )
        serial = q.numel() + 2 * k.numel() < _ROTATE_STORE_SERIAL_BELOW
        words = self._rotate_store_words.pack(*job)
        self._team.run(self._kernels.rotate_store, words, serial=serial)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        batch: ForwardBatch,
        *,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor:
        """Attend to all stored positions that a token sees (see `Attention.attend`)."""
        return self._run(layer, q, batch, 0, _UNLIMITED, scale, window, None)

    def partial(
        self,
        layer: int,
        q: torch.Tensor,
        batch: ForwardBatch,
        start: int,
        stop: int,
        *,
        scale: float,
        window: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend to stored positions `start` to `stop` only (see `Attention.partial`)."""
        lse = torch.empty(q.shape[:2])
        return self._run(layer, q, batch, start, stop, scale, window, lse), lse

    def _run(
        self,
        layer: int,
        q: torch.Tensor,
        batch: ForwardBatch,
        start: int,
        stop: int,
        scale: float,
        window: int | None,
        lse: torch.Tensor | None,
    ) -> torch.Tensor:
        out = self._team.empty(*q.shape)
        num_kv_heads = self.store.num_kv_heads
        group_size = q.shape[1] // num_kv_heads
        plan = self._plan(batch, group_size)
        num_units = plan.items.shape[0] * num_kv_heads
        serial = plan.num_pairs * q.shape[1] * q.shape[2] < _SERIAL_BELOW
        num_threads = self._team.size(serial=serial)
        needed = scratch_bytes(self._split_keys, plan.max_rows, self.store.head_dim, self._kv_type)
        self._scratch = _at_least(self._scratch, num_threads * needed)
        if shares_splits(num_units, num_threads):
            max_context = batch.block_tables.shape[1] * self.store.block_size
            slots = num_units * -(-max_context // self._split_keys) * plan.max_rows
            self._records = _at_least(self._records, slots * self._record_bytes)
            if self._finished.numel() < num_units:
                self._finished = torch.zeros(num_units, dtype=torch.int64)
        self._team.keep(plan.items, self._scratch, self._records, self._finished)
        keys, values = self._cache_addresses[layer]
        block_bytes, head_bytes, token_bytes = self._cache_strides
        job = AttentionJob(
            query=q.data_ptr(),
            query_token_bytes=4 * q.stride(0),
            query_head_bytes=4 * q.stride(1),
            positions=batch.positions.data_ptr(),
            keys=keys,
            values=values,
            block_bytes=block_bytes,
            head_bytes=head_bytes,
            token_bytes=token_bytes,
            block_size=self.store.block_size,
            block_tables=batch.block_tables.data_ptr(),
            table_width=batch.block_tables.stride(0),
            items=plan.items.data_ptr(),
            num_items=plan.items.shape[0],
            num_threads=num_threads,
            num_kv_heads=num_kv_heads,
            group_size=group_size,
            head_dim=self.store.head_dim,
            start=start,
            stop=stop,
            window=_UNLIMITED if window is None else window,
            split_keys=self._split_keys,
            max_rows=plan.max_rows,
            record_bytes=self._record_bytes,
            records=self._records.data_ptr(),
            finished=self._finished.data_ptr(),
            scratch=self._scratch.data_ptr(),
            scratch_bytes=needed,
            out=out.data_ptr(),
            lse=0 if lse is None else lse.data_ptr(),
            kv_type=self._kv_type,
        )
        words = self._attention_words.pack(*job, scale)
        self._team.run(self._kernels.attention, words, serial=serial)
        return out

    def _plan(self, batch: ForwardBatch, group_size: int) -> _Plan:
        """Cut a batch into items, once for all layers."""
        if self._planned is not None and self._planned[0] is batch:
            return self._planned[1]
        tokens_per_item = max(1, _ROWS_PER_ITEM // group_size)
        starts, contexts = batch.query_starts.tolist(), batch.context_lens.tolist()
        items = [
            (request, first, min(tokens_per_item, starts[request + 1] - first))
            for request in range(batch.num_requests)
            for first in range(starts[request], starts[request + 1], tokens_per_item)
        ]
        items.sort(key=lambda item: -item[2] * contexts[item[0]])
        plan = _Plan(
            items=torch.tensor(items, dtype=torch.int32).view(-1, 3),
            max_rows=group_size * max((item[2] for item in items), default=0),
            num_pairs=sum(item[2] * contexts[item[0]] for item in items),
        )
        self._planned = (batch, plan)
        return plan


def _kv_type(store: KVStore, kernels: CpuKernels) -> int:
    """Return the number by which kernels know what the store holds."""
    dtype, device = store.data.dtype, store.data.device
    known = [name for name in KV_TYPES if KV_DTYPES[name] == dtype]
    if device.type != "cpu" or not known:
        raise ConfigError(
            "CPU attention cannot read this KV store",
            why=f"it holds {dtype} on {device}",
            fix=f"use {', '.join(KV_TYPES)} on the cpu, or another attention back end",
        )
    if known[0] not in kernels.kv_types:
        raise ConfigError(
            f"The portable kernels cannot read a KV cache of {known[0]}",
            why="only the native kernels know how",
            fix="set --kv-cache-dtype fp32, or install a C++ compiler for the native kernels",
        )
    if known[0] == "int8" and store.head_dim > MOST_CODES:
        raise ConfigError(
            f"The native kernels cannot read int8 heads of {store.head_dim} entries",
            why=f"their sums overflow beyond {MOST_CODES}",
            fix="set --kv-cache-dtype bf16",
        )
    return KV_TYPES.index(known[0])


def _at_least(buffer: torch.Tensor, num_bytes: int) -> torch.Tensor:
    """Return the buffer, or a new one if it is too small."""
    return buffer if buffer.numel() >= num_bytes else torch.empty(num_bytes, dtype=torch.uint8)
