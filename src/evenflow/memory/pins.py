"""Cached blocks that somebody has asked to keep: held by a reference, as if by a request.

    pins     a  [ 3  4  5 ]         counts   3: 2   4: 2   5: 1   9: 1
             b  [ 3  4  9 ]

A pin is a whole prefix, so it is worth something only from its first block on without a gap.

Knows: which blocks each pin holds, and how many all of them hold together.
Does not know: tokens, why something is pinned, for how long.

Invariants:
    Pinned blocks are cached.
    A pin adds one reference to each of its blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Hashable, Sequence

from evenflow.core.errors import IntegrityError, PinLimitError
from evenflow.core.ids import BlockId
from evenflow.core.wording import counted
from evenflow.memory.block_pool import BlockPool


class Pins:
    """The pins over one pool.

    Args:
        pool: where the blocks are.

    Attributes:
        counts: for each pinned block, the number of pins that hold it.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.counts: Counter[BlockId] = Counter()
        self._pool = pool
        self._blocks: dict[Hashable, list[BlockId]] = {}

    @property
    def num_held_by_pins_alone(self) -> int:
        """Blocks that would be evictable if there were no pins."""
        ref_count = self._pool.ref_count
        return sum(ref_count(block_id) == count for block_id, count in self.counts.items())

    def put(self, pin_id: Hashable, block_ids: Sequence[BlockId], max_pinned_blocks: int) -> None:
        """Pin cached blocks, in place of what `pin_id` held before.

        Raises:
            PinLimitError: all pins together would hold more than `max_pinned_blocks`.
        """
        before = self._blocks.get(pin_id, [])
        released = {block_id for block_id in before if self.counts[block_id] == 1}
        num_pinned = len((self.counts.keys() - released).union(block_ids))
        if num_pinned > max_pinned_blocks:
            raise PinLimitError(
                f"{counted(len(block_ids), 'block')} cannot be pinned",
                why=f"that would make {num_pinned} pinned blocks, and {max_pinned_blocks} leave "
                "just enough for the longest request",
                fix="Release a session, or raise --kv-cache-memory",
            )
        self._pool.share(block_ids)
        self.counts.update(block_ids)
        self.drop(pin_id)
        if block_ids:
            self._blocks[pin_id] = list(block_ids)

    def drop(self, pin_id: Hashable) -> None:
        """Unpin, last block first, so that a prefix outlives what follows it."""
        self._release(self._blocks.pop(pin_id, []))

    def cut(self, block_ids: Container[BlockId]) -> None:
        """Shorten every pin to what lies before the first of these blocks."""
        for blocks in self._blocks.values():
            stop = next((i for i, block_id in enumerate(blocks) if block_id in block_ids), None)
            if stop is not None:
                self._release(blocks[stop:])
                del blocks[stop:]

    def check_integrity(self) -> None:
        """Recount the pins.

        Raises:
            IntegrityError: an invariant does not hold.
        """
        counts = Counter(block_id for blocks in self._blocks.values() for block_id in blocks)
        if counts != self.counts:
            raise IntegrityError(f"pins hold {dict(counts)}, counted are {dict(self.counts)}")
        for block_id in counts:
            if not self._pool.is_cached(block_id):
                raise IntegrityError(f"block {block_id} is pinned but cannot be found")

    def _release(self, block_ids: Sequence[BlockId]) -> None:
        for block_id in block_ids:
            self.counts[block_id] -= 1
            if not self.counts[block_id]:
                del self.counts[block_id]
        self._pool.release(reversed(block_ids))
