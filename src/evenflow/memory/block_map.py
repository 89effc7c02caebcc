"""The whole KV memory at a glance: who has which run of blocks, and for what.

    blocks   0 1 2 3 4 5 6 7 8 9
             a a a a . . b b c c
    runs     (0, 3, USED, a) (3, 1, RESERVED, a) (4, 2, FREE, None) (6, 2, USED, b) ...

Knows: block tables and the state of the blocks in none.
Does not know: how any of it came about.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import TypeAlias

import numpy as np

from evenflow.core.ids import BlockId, RequestId
from evenflow.memory.block_table import BlockTable

BlockRun: TypeAlias = tuple[int, int, int, RequestId | None]
"""First block, number of blocks, `BlockState`, and the request that holds them."""


class BlockState(IntEnum):
    """What a block is good for at present."""

    FREE = 0
    USED = 1
    RESERVED = 2
    EVICTABLE = 3
    PINNED = 4


def block_runs(
    num_blocks: int,
    tables: Mapping[RequestId, BlockTable],
    cached: Collection[BlockId],
    pinned: Collection[BlockId],
) -> list[BlockRun]:
    """Return runs that cover every block once, by address.

    A run does not cross from one extent of a table into another, so what looks like one piece is
    one group. A block in several tables belongs to the first of them.

    Args:
        num_blocks: blocks there are.
        tables: all block tables, the oldest first.
        cached: blocks whose content can be found.
        pinned: blocks that pins hold.
    """
    states = np.zeros(num_blocks, dtype=np.int8)
    owners = np.full(num_blocks, -1, dtype=np.int32)
    # Groups are numbered through all tables; -1 where there is none.
    groups = np.full(num_blocks, -1, dtype=np.int32)
    states[np.fromiter(cached, np.int32, len(cached))] = BlockState.EVICTABLE
    states[np.fromiter(pinned, np.int32, len(pinned))] = BlockState.PINNED
    names = list(tables)
    if names:
        # The last assignment to a block counts, so the first holder comes last.
        held = [tables[name] for name in reversed(names)]
        lengths = np.array([table.num_blocks for table in held])
        num_used = np.array([table.num_used_blocks for table in held])
        ids = np.concatenate([table.ids for table in held])
        first = np.repeat(np.cumsum(lengths) - lengths, lengths)
        position = np.arange(len(ids)) - first
        is_used = position < np.repeat(num_used, lengths)
        states[ids] = np.where(is_used, BlockState.USED, BlockState.RESERVED)
        owners[ids] = np.repeat(np.arange(len(names) - 1, -1, -1), lengths)
        groups[ids] = np.cumsum((position == 0) | (np.diff(ids, prepend=-2) != 1))
    differs = (np.diff(states) != 0) | (np.diff(owners) != 0) | (np.diff(groups) != 0)
    starts = np.concatenate(([0], np.flatnonzero(differs) + 1))
    run_lengths = np.diff(starts, append=num_blocks)
    run_owners = (names[owner] if owner >= 0 else None for owner in owners[starts].tolist())
    return list(
        zip(starts.tolist(), run_lengths.tolist(), states[starts].tolist(), run_owners, strict=True)
    )
