"""Every block's whereabouts: free, held by requests, or kept for its content alone.

                  allocate                    register (full, first of its content)
      FREE ────────────────────▶ HELD ────────────────────────▶ HELD, CACHED ◀──┐
       ▲  ▲                       │  ▲▼ share, release              │  ▲▼        │ share (a hit)
       │  └───────────────────────┘  refs 1, 2, ...                 │  refs      │
       │       last release                            last release ▼            │
       └──────────────────────────────────────────────────────── EVICTABLE ──────┘
                                  evict                            refs 0

Knows: how many references each block has and which content it carries.
Does not know: requests, tables, tokens; who may be robbed of a reserved tail.

Invariants:
    A block is free, or held (references > 0), or evictable (cached, no references); never two.
    The candidates of the eviction policy are exactly the hashes of the evictable blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId
from evenflow.memory.allocator import ExtentAllocator
from evenflow.memory.eviction import EvictionPolicy
from evenflow.memory.extents import Extent, coalesce
from evenflow.memory.prefix_cache import BlockHash, PrefixCache


class BlockPool:
    """Blocks with reference counts and content.

    Args:
        num_blocks: blocks to manage.
        eviction: chooses which evictable block to give up; starts without candidates.
    """

    def __init__(self, num_blocks: int, eviction: EvictionPolicy[BlockHash]) -> None:
        self.num_blocks = num_blocks
        self._allocator = ExtentAllocator(num_blocks)
        self._eviction = eviction
        self._cache = PrefixCache()
        self._ref_counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return self._allocator.num_free

    @property
    def largest_free(self) -> int:
        """Length of the longest run of free blocks."""
        return self._allocator.largest_free

    @property
    def num_evictable(self) -> int:
        """Blocks kept for their content alone."""
        return len(self._eviction)

    @property
    def num_cached(self) -> int:
        """Blocks whose content can be found, held or evictable."""
        return len(self._cache)

    def ref_count(self, block_id: BlockId) -> int:
        """Return how many tables hold the block."""
        return self._ref_counts[block_id]

    def is_cached(self, block_id: BlockId) -> bool:
        """Return whether the block's content can be found."""
        return self._cache.hash_of(block_id) is not None

    def allocate(self, num_blocks: int) -> list[Extent]:
        """Turn free blocks into held ones with one reference, in as few extents as possible.

        Raises:
            IntegrityError: fewer are free.
        """
        extents = self._allocator.allocate_scattered(num_blocks)
        if extents is None:
            raise IntegrityError(
                f"{num_blocks} blocks are to be taken but {self.num_free} are free"
            )
        for extent in extents:
            self._ref_counts[extent.start : extent.stop] = [1] * extent.length
        return extents

    def find(self, content: BlockHash) -> BlockId | None:
        """Return the block with this content, if there is one."""
        return self._cache.find(content)

    def share(self, block_ids: Iterable[BlockId]) -> None:
        """Add a reference to blocks that are held or evictable."""
        for block_id in block_ids:
            content = self._cache.hash_of(block_id)
            if content is not None:
                self._eviction.access(content)
            if self._ref_counts[block_id] == 0:
                if content is None:
                    raise IntegrityError(f"block {block_id} is free and cannot be shared")
                self._eviction.discard(content)
            self._ref_counts[block_id] += 1

    def release(self, block_ids: Iterable[BlockId]) -> None:
        """Drop one reference to each block.

        Without references left, cached blocks become evictable in the given order and the others
        become free.
        """
        freed: list[BlockId] = []
        for block_id in block_ids:
            ref_count = self._ref_counts[block_id] - 1
            if ref_count < 0:
                raise IntegrityError(f"block {block_id} is released but nobody holds it")
            self._ref_counts[block_id] = ref_count
            if ref_count == 0:
                content = self._cache.hash_of(block_id)
                if content is None:
                    freed.append(block_id)
                else:
                    self._eviction.add(content)
        for extent in coalesce(sorted(freed)):
            self._allocator.free(extent)

    def register(self, content: BlockHash, block_id: BlockId) -> None:
        """Let a held, full block be found by its content, unless another block already is."""
        self._eviction.access(content)
        self._cache.insert(content, block_id)

    def evict(self, num_blocks: int) -> None:
        """Turn evictable blocks into free ones, in the order of the eviction policy."""
        evicted: list[BlockId] = []
        for _ in range(num_blocks):
            content = self._eviction.victim()
            self._eviction.discard(content)
            evicted.append(self._cache.remove(content))
        for extent in coalesce(sorted(evicted)):
            self._allocator.free(extent)

    def check_integrity(self) -> None:
        """Recount every block.

        Raises:
            IntegrityError: a block is in no place or in two, or the parts disagree.
        """
        self._allocator.check_integrity()
        self._cache.check_integrity()
        free_extents = self._allocator.free_extents()
        free = {block_id for extent in free_extents for block_id in extent.block_ids}
        num_evictable = 0
        for block_id in Extent(0, self.num_blocks).block_ids:
            ref_count, content = self._ref_counts[block_id], self._cache.hash_of(block_id)
            evictable = content is not None and content in self._eviction
            num_evictable += evictable
            places = [block_id in free, ref_count > 0, evictable]
            if sum(places) != 1 or ref_count < 0:
                raise IntegrityError(
                    f"block {block_id} is not in exactly one place",
                    why=f"free, held, evictable = {places} with {ref_count} references",
                )
            if block_id in free and content is not None:
                raise IntegrityError(f"block {block_id} is free but its content can be found")
        if num_evictable != len(self._eviction):
            raise IntegrityError(
                f"the eviction policy has {len(self._eviction)} candidates",
                why=f"{num_evictable} blocks are evictable",
            )
