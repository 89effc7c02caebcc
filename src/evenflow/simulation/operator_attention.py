"""Attention of one layer, from prompts and decodes that were measured apart.

    {gpu}_attention_context       heads, requests, length of their prompts (no history) -> time
    {gpu}_attention_generation    heads, requests, KV entries each reads -> time

A chunk of c tokens after h computed ones attends like a prompt with as many pairs of tokens, of
length sqrt(c * (c + 2 h)), and takes at least what reading its KV entries once takes, which is what
a decode of that context does. In a step of chunks and decodes the two times are added.

Heads that were not measured take the time of the nearest ones, scaled: by query heads for prompts,
which compute, and by key and value heads for decodes, which read.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from evenflow.execution.costs.interpolation import Floats, Range, Surface
from evenflow.simulation.profile_tables import nearest_shape, read_table

logger = logging.getLogger(__name__)


class Heads(NamedTuple):
    """The heads of one device: for queries, for keys and values, and the entries of each."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.num_heads} over {self.num_kv_heads} heads of {self.head_dim}"


class OperatorAttention:
    """The attention of one layer on one device.

    Args:
        directory: the folder of tables.
        gpu: the device, as the tables call it.
        heads: of this device.
    """

    def __init__(self, directory: Path, gpu: str, heads: Heads) -> None:
        name = f"attention of {heads} on {gpu}"
        batch = Range(name, "requests")
        table = f"{gpu}_attention_context"
        self._prompts = Surface(
            # Over the square of the length, in which the time is nearly a line.
            ((n, length**2, s) for n, length, s in _times(directory, table, "isl", heads)),
            batch,
            Range(name, "pairs of tokens of a prompt"),
        )
        self._decode = Surface(
            _times(directory, f"{gpu}_attention_generation", "kv_len", heads),
            batch,
            Range(name, "KV entries of a decode"),
        )

    def decode_s(self, num_decodes: int, mean_context: float) -> float:
        """Return the seconds for decodes alone."""
        return self._decode(num_decodes, mean_context)

    def decodes_s(self, num_decodes: int, mean_contexts: Floats) -> Floats:
        """Return the same for several mean contexts, in ascending order."""
        return self._decode.values_at(num_decodes, mean_contexts)

    def mixed_s(
        self, chunks: tuple[tuple[int, int], ...], num_decodes: int, mean_context: float
    ) -> float:
        """Return the seconds for chunks, and decodes if any."""
        count = len(chunks)
        num_pairs = sum(new * (new + 2 * before) for new, before in chunks)
        num_entries = sum(new + before for new, before in chunks)
        seconds = max(
            self._prompts(count, num_pairs / count), self._decode(count, num_entries / count)
        )
        if num_decodes:
            seconds += self._decode(num_decodes, mean_context)
        return seconds


def _times(
    directory: Path, table: str, length: str, heads: Heads
) -> Iterator[tuple[int, int, float]]:
    """Yield (requests, length, seconds)."""
    points: defaultdict[Heads, list[tuple[int, int, float]]] = defaultdict(list)
    columns = ("heads", "kv_heads", "head_dim", "batch_size", length, "latency_ms")
    for *shape, count, tokens, latency_ms in read_table(
        directory, table, columns, {"kv_dtype": "bfloat16"}
    ):
        points[Heads(*map(int, shape))].append((int(count), int(tokens), float(latency_ms) * 1e-3))
    near = nearest_shape(points, heads)
    scale = heads.head_dim / near.head_dim
    if length == "isl":
        scale *= heads.num_heads / near.num_heads
    else:
        scale *= heads.num_kv_heads / near.num_kv_heads
    if near != heads:
        logger.warning("%s: %s were not measured, scaled from %s", table, heads, near)
    for num_requests, num_tokens, seconds in points[near]:
        yield num_requests, num_tokens, scale * seconds
