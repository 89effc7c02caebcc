"""Every block's whereabouts: empty, held by requests, or kept for its content alone.

                 allocate                register (full, first of its content)
      EMPTY ───────────────▶ HELD ───────────────────────────▶ HELD, CACHED
        ▲                    │  ▲                                │  ▲    ▲
        └────────────────────┘  │                  last release  ▼  │    │ share (a hit)
             last release       │                               WARM ────┤
                                │ allocate                       │ cool │
                                └───────────────────────────── COLD ─────┘

Warm and cold blocks are evictable: nobody holds them, and their content can be found. The eviction
policy ranks the warm ones. The cold ones, its past victims, lie among the empty blocks, where best
fit makes long runs of both; the content of a cold block is lost only when it is handed out.
Evicting in strict order, one block here and one there, would grind extents down to single blocks.

Knows: how many references each block has and which content it carries.
Does not know: requests, tables, tokens; who may be robbed of a reserved tail.

Invariants:
    A block is in the allocator (empty or cold), or held (references > 0), or warm; never two.
    The candidates of the eviction policy are exactly the hashes of the warm blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

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
        eviction: ranks evictable content; starts without candidates.
    """

    def __init__(self, num_blocks: int, eviction: EvictionPolicy[BlockHash]) -> None:
        self.num_blocks = num_blocks
        self._allocator = ExtentAllocator(num_blocks)
        self._eviction = eviction
        self._cache = PrefixCache()
        self._ref_counts = [0] * num_blocks
        self._num_cold = 0

    @property
    def num_empty(self) -> int:
        """Blocks that hold nothing."""
        return self._allocator.num_free - self._num_cold

    @property
    def num_evictable(self) -> int:
        """Blocks kept for their content alone, warm or cold."""
        return len(self._eviction) + self._num_cold

    @property
    def num_ready(self) -> int:
        """Blocks that can be handed out at once, empty or cold."""
        return self._allocator.num_free

    @property
    def longest_ready(self) -> int:
        """Length of the longest run of such blocks."""
        return self._allocator.largest_free

    @property
    def num_cached(self) -> int:
        """Blocks whose content can be found, held or evictable."""
        return len(self._cache)

    def ref_count(self, block_id: BlockId) -> int:
        """Return how many tables and pins hold the block."""
        return self._ref_counts[block_id]

    def is_cached(self, block_id: BlockId) -> bool:
        """Return whether the block's content can be found."""
        return self._cache.hash_of(block_id) is not None

    def content_of(self, block_id: BlockId) -> BlockHash | None:
        """Return the content under which the block can be found, if it can."""
        return self._cache.hash_of(block_id)

    @property
    def cached_ids(self) -> Collection[BlockId]:
        """The blocks whose content can be found."""
        return self._cache.block_ids

    def allocate(self, num_blocks: int) -> list[Extent]:
        """Hand out empty or cold blocks with one reference, in as few extents as possible.

        Raises:
            IntegrityError: fewer are ready.
        """
        extents = self._allocator.allocate_scattered(num_blocks)
        if extents is None:
            raise IntegrityError(f"{num_blocks} blocks are to be taken, {self.num_ready} are ready")
        return self._hand_out(extents)

    def allocate_behind(self, block_id: BlockId, num_blocks: int) -> list[Extent]:
        """Hand out the ready blocks right behind a block, at most `num_blocks`, perhaps none."""
        extent = self._allocator.allocate_at(block_id + 1, num_blocks)
        return self._hand_out([] if extent is None else [extent])

    def allocate_apart(self, num_blocks: int) -> list[Extent]:
        """Hand out ready blocks that have room behind them to grow, if that can be had.

        Raises:
            IntegrityError: fewer are ready.
        """
        extent = self._allocator.allocate_apart(num_blocks)
        return self.allocate(num_blocks) if extent is None else self._hand_out([extent])

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
                self._revive(block_id, content)
            self._ref_counts[block_id] += 1

    def release(self, block_ids: Iterable[BlockId]) -> None:
        """Drop one reference to each block.

        Without references left, cached blocks become warm, in the given order, and the others
        become empty.
        """
        emptied: list[BlockId] = []
        for block_id in block_ids:
            ref_count = self._ref_counts[block_id] - 1
            if ref_count < 0:
                raise IntegrityError(f"block {block_id} is released but nobody holds it")
            self._ref_counts[block_id] = ref_count
            if ref_count == 0:
                content = self._cache.hash_of(block_id)
                if content is None:
                    emptied.append(block_id)
                else:
                    self._eviction.add(content)
        for extent in coalesce(sorted(emptied)):
            self._allocator.free(extent)

    def release_extents(self, extents: Iterable[Extent]) -> None:
        """Drop one reference to each block of extents, the last block of each first."""
        for extent in extents:
            start, stop = extent.start, extent.stop
            if self._cache or self._ref_counts[start:stop] != [1] * extent.length:
                self.release(reversed(extent.block_ids))
            else:  # all become empty
                self._ref_counts[start:stop] = [0] * extent.length
                self._allocator.free(extent)

    def register(self, content: BlockHash, block_id: BlockId) -> None:
        """Let a held, full block be found by its content, unless another block already is."""
        self._eviction.access(content)
        self._cache.insert(content, block_id)

    def unregister(self, block_ids: Iterable[BlockId]) -> None:
        """Let held blocks be found by their content no more."""
        for block_id in block_ids:
            content = self._cache.hash_of(block_id)
            if content is not None:
                self._cache.remove(content)

    def cool(self, num_blocks: int) -> None:
        """Cool warm blocks, in the order of the eviction policy, until so many are ready."""
        while self._allocator.num_free < num_blocks:
            self._cool_next()

    def cool_for_run(self, length: int) -> None:
        """Cool warm blocks until a run of that length is ready, or half of them are cold.

        The warmer half keeps its content however scattered the rest may be.
        """
        while self._allocator.largest_free < length and self._num_cold < len(self._eviction):
            self._cool_next()

    def empty_evictable(self) -> None:
        """Forget all content that nobody holds."""
        while self._eviction:
            self._cool_next()
        for extent in self._allocator.free_extents():
            self._forget(extent)

    def check_integrity(self) -> None:
        """Recount every block.

        Raises:
            IntegrityError: a block is in no place or in two, or the parts disagree.
        """
        self._allocator.check_integrity()
        self._cache.check_integrity()
        ready = {b for extent in self._allocator.free_extents() for b in extent.block_ids}
        num_warm = num_cold = 0
        for block_id in Extent(0, self.num_blocks).block_ids:
            ref_count, content = self._ref_counts[block_id], self._cache.hash_of(block_id)
            is_warm = content is not None and content in self._eviction
            places = [block_id in ready, ref_count > 0, is_warm]
            if sum(places) != 1 or ref_count < 0:
                raise IntegrityError(
                    f"block {block_id} is not in exactly one place",
                    why=f"ready, held, warm = {places} with {ref_count} references",
                )
            num_warm += is_warm
            num_cold += block_id in ready and content is not None
        if (num_warm, num_cold) != (len(self._eviction), self._num_cold):
            raise IntegrityError(
                f"{num_warm} blocks are warm and {num_cold} cold",
                why=f"counted are {len(self._eviction)} and {self._num_cold}",
            )

    def _hand_out(self, extents: list[Extent]) -> list[Extent]:
        for extent in extents:
            if self._num_cold:
                self._forget(extent)
            self._ref_counts[extent.start : extent.stop] = [1] * extent.length
        return extents

    def _cool_next(self) -> None:
        content = self._eviction.victim()
        block_id = self._cache.find(content)
        if block_id is None:
            raise IntegrityError("the eviction policy names content that is not cached")
        self._eviction.discard(content)
        self._allocator.free(Extent(block_id, 1))
        self._num_cold += 1

    def _revive(self, block_id: BlockId, content: BlockHash | None) -> None:
        """Take an evictable block out of its place, because it is about to be held."""
        if content is None:
            raise IntegrityError(f"block {block_id} is empty and cannot be shared")
        if content in self._eviction:
            self._eviction.discard(content)
        else:
            self._allocator.claim(block_id)
            self._num_cold -= 1

    def _forget(self, extent: Extent) -> None:
        """Lose the content of cold blocks."""
        for block_id in extent.block_ids:
            content = self._cache.hash_of(block_id)
            if content is not None:
                self._cache.remove(content)
                self._num_cold -= 1
