"""`Attention` on a GPU, reading the KV store in place through either layout's strides.

Invariant: what is launched depends on the shapes of a batch alone. Nothing is read back, so that
`attend` can be captured in a CUDA graph and replayed for other requests of the same shapes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from evenflow.core.errors import ConfigError
from evenflow.execution.attention import Rotation
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.kernels.triton.decode import decode_kernel, merge_kernel
from evenflow.execution.kernels.triton.prefill import prefill_kernel
from evenflow.execution.kernels.triton.rows import rotate_store_kernel
from evenflow.execution.kernels.triton.tiles import Tiles, choose_tiles
from evenflow.execution.torch.kv_store import KVStore

_UNLIMITED = 1 << 30
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MAX_HEAD_DIM = 256
_ENTRIES_PER_WARP = 1024  # of the queries that are turned together


class TritonAttention:
    """Paged attention over a store on a GPU.

    A request without context, as in a padded batch, gets zeros.

    Args:
        store: the KV memory it writes to and reads from.
        tiles: sizes of the pieces of work; chosen for the store and its GPU by default.

    Raises:
        ConfigError: the kernels do not support the store's dtype or head size.
    """

    def __init__(self, store: KVStore, tiles: Tiles | None = None) -> None:
        dtype = store.data.dtype
        if dtype not in _DTYPES or store.head_dim > _MAX_HEAD_DIM:
            raise ConfigError(
                "The Triton attention kernels cannot read this KV store",
                why=f"it holds {dtype} heads of {store.head_dim} entries",
                fix=f"use float16, bfloat16 or float32, and heads of up to {_MAX_HEAD_DIM} entries",
            )
        self.store = store
        capability, self._num_processors = _processors(store.data.device)
        self._tiles = tiles or choose_tiles(store.head_dim, dtype, capability)
        self._strides = store.keys(0).stride()[:3]
        self._width = max(16, triton.next_power_of_2(store.head_dim))

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
        num_tokens, num_kv_heads, head_dim = k.shape
        group, num_pairs = q.shape[1] // num_kv_heads, rotation.cos.shape[1]
        heads = triton.next_power_of_2(group)
        rotate_store_kernel[(num_tokens, num_kv_heads)](
            q,
            *q.stride()[:2],
            k,
            *k.stride()[:2],
            v,
            *v.stride()[:2],
            *rotation,
            rotation.cos.stride(0),
            batch.slot_mapping,
            self.store.keys(layer),
            self.store.values(layer),
            *self._strides,
            GROUP=group,
            HEADS=heads,
            HEAD_DIM=head_dim,
            WIDTH=self._width,
            PAIRS=num_pairs,
            PAIRS_WIDTH=triton.next_power_of_2(num_pairs),
            BLOCK_SIZE=self.store.block_size,
            num_warps=min(8, max(1, heads * self._width // _ENTRIES_PER_WARP)),
        )

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
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
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
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        bounds = (start, min(stop, _UNLIMITED), _UNLIMITED if window is None else window)
        # As many tokens as requests: one token each. A lone request of several: no decode.
        if batch.num_tokens > batch.num_requests:
            self._prefill(layer, q, batch, bounds, scale, out, lse)
        if batch.num_tokens == batch.num_requests or batch.num_requests > 1:
            self._decode(layer, q, batch, bounds, scale, out, lse)
        return out

    def _prefill(
        self,
        layer: int,
        q: torch.Tensor,
        batch: ForwardBatch,
        bounds: tuple[int, int, int],
        scale: float,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        tile = self._tiles.prefill
        group = q.shape[1] // self.store.num_kv_heads
        rows = max(tile.rows, triton.next_power_of_2(group))
        num_tiles = batch.num_tokens // (rows // group) + batch.num_requests
        prefill_kernel[(num_tiles, self.store.num_kv_heads)](
            *self._inputs(layer, q, batch),
            batch.num_requests,
            *bounds,
            scale * math.log2(math.e),
            out,
            lse,
            GROUP=group,
            **self._constants(),
            ROWS=rows,
            KEYS=tile.keys,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    def _decode(
        self,
        layer: int,
        q: torch.Tensor,
        batch: ForwardBatch,
        bounds: tuple[int, int, int],
        scale: float,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        tiles, tile = self._tiles, self._tiles.decode
        num_heads, num_kv_heads = q.shape[1], self.store.num_kv_heads
        group = num_heads // num_kv_heads
        # Most splits a request can have: one more than its keys fill when the first begins early.
        most_keys = min(bounds[2], batch.block_tables.shape[1] * self.store.block_size)
        max_records = min(tiles.max_splits, -(-most_keys // tiles.split_keys) + 1)
        wanted = tiles.programs_per_processor * self._num_processors
        num_workers = min(max_records, wanted // (batch.num_requests * num_kv_heads))
        records = states = None
        if num_workers > 1:
            shape = (batch.num_requests, num_heads, max_records)
            records = torch.empty((*shape, q.shape[2]), dtype=torch.float32, device=q.device)
            states = torch.empty((*shape, 2), dtype=torch.float32, device=q.device)
        decode_kernel[(max(num_workers, 1), num_kv_heads, batch.num_requests)](
            *self._inputs(layer, q, batch),
            *bounds,
            scale * math.log2(math.e),
            out,
            lse,
            records,
            states,
            max_records,
            GROUP=group,
            **self._constants(),
            ROWS=max(tile.rows, triton.next_power_of_2(group)),
            KEYS=tile.keys,
            SPLIT_KEYS=tiles.split_keys,
            MAX_SPLITS=tiles.max_splits,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        if records is not None:
            merge_kernel[(num_heads, batch.num_requests)](
                batch.query_starts,
                batch.context_lens,
                *bounds,
                out,
                lse,
                records,
                states,
                max_records,
                HEAD_DIM=q.shape[2],
                WIDTH=self._width,
                SPLIT_KEYS=tiles.split_keys,
                MAX_SPLITS=tiles.max_splits,
                num_warps=1,
            )

    def _inputs(self, layer: int, q: torch.Tensor, batch: ForwardBatch) -> tuple[Any, ...]:
        """Return the first arguments of both attention kernels."""
        return (
            q,
            *q.stride()[:2],
            self.store.keys(layer),
            self.store.values(layer),
            *self._strides,
            batch.block_tables,
            batch.block_tables.stride(0),
            batch.query_starts,
            batch.context_lens,
        )

    def _constants(self) -> dict[str, int]:
        return {
            "HEAD_DIM": self.store.head_dim,
            "WIDTH": self._width,
            "BLOCK_SIZE": self.store.block_size,
        }


def _processors(device: torch.device) -> tuple[tuple[int, int], int]:
    """Return a GPU's compute capability and number of multiprocessors.

    On the CPU, where Triton's interpreter runs one program after the other, there is one.
    """
    if device.type != "cuda":
        return (8, 0), 1
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count
