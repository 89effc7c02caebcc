"""A request's blocks in logical order: token `t` lies in block `ids[t // block_size]`.

    ids              [ 7  8  9 40 41 42 43 ]
    extents          [ 7..9 ][   40..43    ]
    used | reserved  |<---- 5 ---->|<- 2 ->|

The used blocks are the ones the request has tokens for. The reserved tail was taken along so that
growth stays contiguous and costs nothing; whoever runs short may cut it off.

Knows: which blocks, in which order, and how many of them are spoken for.
Does not know: reference counts, contents, other tables.

Invariants:
    `extents` is exactly `coalesce(ids)`.
    `capacity_tokens == num_used_blocks * block_size`, and `num_used_blocks <= num_blocks`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId
from evenflow.memory.extents import Extent, coalesce

BlockIds: TypeAlias = npt.NDArray[np.int32]

_INITIAL_CAPACITY = 64


class BlockTable:
    """The blocks of one request.

    Args:
        block_size: tokens per block.
        max_num_blocks: more blocks than this are of no use to the request.

    Attributes:
        block_size: tokens per block.
        max_num_blocks: more blocks than this are of no use to the request.
        num_blocks: blocks in the table, the reserved tail included.
        num_used_blocks: leading blocks the request has tokens for.
        capacity_tokens: tokens that fit in the used blocks.
        extents: the blocks as runs, in logical order.
    """

    __slots__ = (
        "_ids",
        "block_size",
        "capacity_tokens",
        "extents",
        "max_num_blocks",
        "num_blocks",
        "num_used_blocks",
    )

    def __init__(self, block_size: int, max_num_blocks: int) -> None:
        self.block_size = block_size
        self.max_num_blocks = max_num_blocks
        self.num_blocks = 0
        self.num_used_blocks = 0
        self.capacity_tokens = 0
        self.extents: list[Extent] = []
        self._ids: BlockIds = np.empty(_INITIAL_CAPACITY, dtype=np.int32)

    @property
    def ids(self) -> BlockIds:
        """(num_blocks,), int32, block ids; a view that is stale once the table changes."""
        return self._ids[: self.num_blocks]

    @property
    def num_reserved_blocks(self) -> int:
        """Length of the tail that may be cut off."""
        return self.num_blocks - self.num_used_blocks

    def append(self, extent: Extent) -> None:
        """Put an extent at the end, as reserved."""
        first, stop = self.num_blocks, self.num_blocks + extent.length
        if stop > len(self._ids):
            grown: BlockIds = np.empty(max(stop, 2 * len(self._ids)), dtype=np.int32)
            grown[:first] = self._ids[:first]
            self._ids = grown
        self._ids[first:stop] = np.arange(extent.start, extent.stop)
        self.num_blocks = stop
        if self.extents and self.extents[-1].stop == extent.start:
            last = self.extents.pop()
            extent = Extent(last.start, last.length + extent.length)
        self.extents.append(extent)

    def use(self, num_blocks: int) -> None:
        """Speak for the first `num_blocks` blocks; the rest is the reserved tail."""
        self.num_used_blocks = num_blocks
        self.capacity_tokens = num_blocks * self.block_size

    def replace(self, index: int, block_id: BlockId) -> None:
        """Put another block in the place of the one at `index`."""
        self._ids[index] = block_id
        self.extents = coalesce(self.ids.tolist())

    def cut_tail(self, num_blocks: int) -> list[Extent]:
        """Remove the last `num_blocks` blocks, all of them reserved, and return them.

        Raises:
            ValueError: fewer blocks than that are reserved.
        """
        if num_blocks > self.num_reserved_blocks:
            raise ValueError(f"cannot cut {num_blocks} of {self.num_reserved_blocks} reserved")
        self.num_blocks -= num_blocks
        cut: list[Extent] = []
        while num_blocks > 0:
            last = self.extents.pop()
            if last.length > num_blocks:
                kept, last = last.split(last.length - num_blocks)
                self.extents.append(kept)
            cut.append(last)
            num_blocks -= last.length
        return cut[::-1]

    def check_integrity(self) -> None:
        """Compare extents with ids and the boundaries with each other.

        Raises:
            IntegrityError: they differ, or a block is in the table twice.
        """
        ids = self.ids.tolist()
        if self.extents != coalesce(ids):
            raise IntegrityError(f"extents {self.extents} do not list the blocks {ids}")
        if len(set(ids)) != len(ids):
            raise IntegrityError(f"a block is twice in the table {ids}")
        if not 0 <= self.num_used_blocks <= self.num_blocks:
            raise IntegrityError(f"{self.num_used_blocks} of {self.num_blocks} blocks are used")
        if self.capacity_tokens != self.num_used_blocks * self.block_size:
            raise IntegrityError(f"capacity of {self.num_used_blocks} blocks is out of step")
