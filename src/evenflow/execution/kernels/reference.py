"""Slow, obvious paged attention in float64: the oracle every back end is tested against."""

from __future__ import annotations

import torch

from evenflow.execution.attention import Rotation
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.torch.kv_rows import decode
from evenflow.execution.torch.kv_store import KVStore


class ReferenceAttention:
    """`Attention` that gathers each request's keys and does the textbook softmax, on any device.

    Args:
        store: the KV memory it writes to and reads from.
    """

    def __init__(self, store: KVStore) -> None:
        self.store = store

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
        q.copy_(rotated(q, rotation))
        is_stored = batch.slot_mapping >= 0
        keys, slots = rotated(k, rotation)[is_stored], batch.slot_mapping[is_stored]
        self.store.write(layer, keys, v[is_stored], slots)

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
        longest = int(batch.context_lens.max()) if batch.num_requests else 0
        return self.partial(layer, q, batch, 0, longest, scale=scale, window=window)[0]

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
        out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.full(q.shape[:2], -torch.inf, dtype=q.dtype, device=q.device)
        for request in range(batch.num_requests):
            rows = slice(int(batch.query_starts[request]), int(batch.query_starts[request + 1]))
            last = min(stop, int(batch.context_lens[request]))
            if rows.start == rows.stop or start >= last:
                continue
            where = torch.arange(start, last, device=q.device)
            keys = self._gather(self.store.keys(layer), batch, request, where, q.shape[1])
            values = self._gather(self.store.values(layer), batch, request, where, q.shape[1])
            scores = torch.einsum("qhd,khd->qhk", q[rows].double(), keys) * scale
            position = batch.positions[rows].view(-1, 1, 1)
            hidden = where > position
            if window is not None:
                hidden |= where <= position - window
            scores = scores.masked_fill(hidden, -torch.inf)
            lse[rows] = torch.logsumexp(scores, -1).to(q.dtype)
            weights = torch.nan_to_num(torch.softmax(scores, -1))  # all hidden: 0/0
            out[rows] = torch.einsum("qhk,khd->qhd", weights, values).to(q.dtype)
        return out, lse

    def _gather(
        self,
        cache: torch.Tensor,
        batch: ForwardBatch,
        request: int,
        where: torch.Tensor,
        num_heads: int,
    ) -> torch.Tensor:
        """Return one request's entries, one per query head: (len(where), num_heads, head_dim)."""
        block_ids = batch.block_tables[request].long()[where // self.store.block_size]
        found = decode(cache[block_ids, :, where % self.store.block_size]).double()
        return found.repeat_interleave(num_heads // self.store.num_kv_heads, dim=1)


def rotated(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Return heads (num_tokens, num_heads, head_dim) turned, in the wider of the two dtypes."""
    cos, sin = (table.unsqueeze(1) for table in rotation)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
