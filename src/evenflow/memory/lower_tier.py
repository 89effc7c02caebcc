"""A tier below the device: blocks that carry copies of content, and nothing else.

    reserve ──▶ being written ──keep──▶ kept ──hold──▶ being read ──release──▶ kept
                      └──abandon──▶ not found            (what is worth least makes room)

It is a pool like the device's, with the same allocator, so that what leaves the device in long runs
arrives in long runs.

Several may want the same copy: those who share a prefix, a session and whoever runs its next turn.
Each has a claim of its own, and the copy is worth what the best of them says.

Knows: which content lies where on the tier, what each copy is worth to whom, whose they are.
Does not know: the device; how bytes get here.

Invariants:
    A block that is written or read holds a reference and is not given away.
    What can be found is kept or being written; its hash says which bytes it holds.
    Claims are on what can be found, and end with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Protocol

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import DEFAULT_TENANT, BlockId, TenantId
from evenflow.memory.block_pool import BlockPool
from evenflow.memory.extents import Extent
from evenflow.memory.prefix_cache import BlockHash
from evenflow.memory.transfers import Tier
from evenflow.memory.worth import ByWorth, Worth

_MIN_GROUP_BLOCKS = 8


class Journal(Protocol):
    """Remembers across restarts what a tier holds."""

    def contents(self) -> Mapping[BlockHash, int]:
        """Return the block of each content that outlived the last process."""
        ...

    def record(self, slot: int, content: BlockHash) -> bool:
        """Note that a block is written; return whether it is sound."""
        ...

    def forget(self, slot: int) -> None:
        """Note that a block is about to be written again."""
        ...

    def close(self) -> None:
        """Let another process have what it remembers."""
        ...


class LowerTier:
    """Copies on one tier.

    Args:
        tier: which one.
        num_blocks: blocks it holds.
        tenant_share: share of the blocks (0-1) up to which a tenant's copies are as good as any;
            what it has beyond that goes first when room is needed.
        journal: for a tier that outlives the process; what it knows can be found at once.
    """

    def __init__(
        self,
        tier: Tier,
        num_blocks: int,
        *,
        tenant_share: float = 1.0,
        journal: Journal | None = None,
    ) -> None:
        self.tier = tier
        self.num_blocks = num_blocks
        self._by_worth = ByWorth(self._worth_of)
        self._pool = BlockPool(num_blocks, self._by_worth)
        # What the block's content is worth, by who says so.
        self._claims: dict[BlockId, dict[Hashable, Worth]] = {}
        self._quota = tenant_share * num_blocks
        self._tenant_of: list[TenantId | None] = [None] * num_blocks
        self._num_blocks_of: Counter[TenantId] = Counter()
        self._journal = journal
        if journal is not None:
            self._recall(journal)

    @property
    def num_kept(self) -> int:
        """Blocks whose content can be found."""
        return self._pool.num_cached

    @property
    def num_unheld(self) -> int:
        """Blocks that are neither read nor written at present."""
        return self._pool.num_empty + self._pool.num_evictable

    @property
    def num_ready(self) -> int:
        """Blocks that can be written without choosing a copy to give up."""
        return self._pool.num_ready

    def find(self, content: BlockHash) -> BlockId | None:
        """Return the block with this content, if there is one."""
        return self._pool.find(content)

    def reserve(
        self,
        contents: Sequence[BlockHash],
        tenant_id: TenantId = DEFAULT_TENANT,
        *,
        after: BlockHash | None = None,
        below: Worth | None = None,
    ) -> list[Extent]:
        """Take blocks to write these contents into; they can be found at once.

        Copies that are worth least make room. If that is not enough only the first contents find
        place.

        Args:
            contents: none of them is here.
            tenant_id: for whom.
            after: content that comes before them in their chain. They go right behind it, if they
                can; what begins a chain is given room to grow, so that the chain stays one run.
            below: only copies that are worth less than this make room; None for any.

        Returns:
            Where they go, in order; for fewer contents if there is not enough room.
        """
        num_blocks = self._make_room(min(len(contents), self.num_unheld), tenant_id, below)
        if not num_blocks:
            return []
        before = None if after is None else self._pool.find(after)
        extents = [] if before is None else self._pool.allocate_behind(before, num_blocks)
        num_left = num_blocks - sum(extent.length for extent in extents)
        if num_left:
            extents += self._pool.allocate_apart(num_left)
        block_ids = [block_id for extent in extents for block_id in extent.block_ids]
        for block_id, content in zip(block_ids, contents, strict=False):
            if self._journal is not None:
                self._journal.forget(block_id)
            self._pool.register(content, block_id)
            self._claims.pop(block_id, None)
            self._charge(block_id, tenant_id)
        return extents

    def keep(self, block_ids: Collection[BlockId]) -> None:
        """End what `reserve` began: the blocks are written, unless they were abandoned."""
        if self._journal is not None:
            contents = ((id_, self._pool.content_of(id_)) for id_ in block_ids)
            lost = [
                id_ for id_, c in contents if c is not None and not self._journal.record(id_, c)
            ]
            self.abandon(lost)
        self._pool.release(block_ids)

    def hold(self, block_ids: Iterable[BlockId]) -> None:
        """Keep blocks from being given away until `release`, because they are about to be read."""
        self._pool.share(block_ids)

    def release(self, block_ids: Collection[BlockId]) -> None:
        """End what `hold` began; the content stays until the room is needed."""
        self._pool.release(block_ids)

    def appraise(
        self,
        contents: Sequence[BlockHash],
        worth: Worth,
        owner: Hashable = None,
        *,
        is_chain: bool = True,
    ) -> None:
        """Say what copies of successive blocks are worth to somebody, as far as they are here.

        Args:
            contents: of the blocks.
            worth: of one block by itself.
            owner: who says so, in place of what he said before.
            is_chain: whether these are the last blocks of their chain, and what follows a lost
                block is lost, too.
        """
        for num_behind, content in enumerate(reversed(contents), 1):
            block_id = self._pool.find(content)
            if block_id is not None:
                value = worth.value + math.log2(num_behind) if is_chain else worth.value
                claims = self._claims.setdefault(block_id, {})
                claims[owner] = Worth(True, worth.is_awaited, worth.urgency, value)
                self._reconsider(content)

    def withdraw(self, contents: Iterable[BlockHash], owner: Hashable) -> None:
        """End what somebody said about copies."""
        for content in contents:
            block_id = self._pool.find(content)
            if block_id is not None and owner in self._claims.get(block_id, ()):
                del self._claims[block_id][owner]
                self._reconsider(content)

    def best(self, max_blocks: int) -> list[BlockHash]:
        """Return the contents that are worth most, those first."""
        contents = [self._pool.content_of(block_id) for block_id in self._pool.cached_ids]
        known = [content for content in contents if content is not None]
        return sorted(known, key=self._worth_of, reverse=True)[:max_blocks]

    def abandon(self, block_ids: Collection[BlockId]) -> None:
        """Let nobody find held blocks any more, because their bytes are not to be trusted."""
        self._pool.unregister(block_ids)
        self._lose(block_ids)

    def clear(self) -> None:
        """Forget all copies that are neither read nor written."""
        before = list(self._pool.cached_ids)
        self._pool.empty_evictable()
        self._lose([block_id for block_id in before if self._pool.content_of(block_id) is None])

    def close(self) -> None:
        """Give up what outlives the process; nothing is read or written any more."""
        if self._journal is not None:
            self._journal.close()

    def check_integrity(self) -> None:
        """Recount everything by brute force.

        Raises:
            IntegrityError: an invariant does not hold.
        """
        self._pool.check_integrity()
        counts = Counter(tenant for tenant in self._tenant_of if tenant is not None)
        if counts != +self._num_blocks_of:
            raise IntegrityError(f"tenants have {counts}, counted are {self._num_blocks_of}")
        if not self._claims.keys() <= set(self._pool.cached_ids):
            raise IntegrityError("somebody claims a copy that cannot be found")

    def _recall(self, journal: Journal) -> None:
        """Find again what an earlier process left."""
        block_ids = [
            id_ for extent in self._pool.allocate(self.num_blocks) for id_ in extent.block_ids
        ]
        for content, slot in journal.contents().items():
            self._pool.register(content, block_ids[slot])
        self._pool.release(block_ids)

    def _lose(self, block_ids: Iterable[BlockId]) -> None:
        """Note that what blocks held can be found no more."""
        for block_id in block_ids:
            self._claims.pop(block_id, None)
            self._charge(block_id, None)
            if self._journal is not None:
                self._journal.forget(block_id)

    def _charge(self, block_id: BlockId, tenant_id: TenantId | None) -> None:
        """Note whose copy a block holds from now on."""
        before = self._tenant_of[block_id]
        if before is not None:
            self._num_blocks_of[before] -= 1
        self._tenant_of[block_id] = tenant_id
        if tenant_id is not None:
            self._num_blocks_of[tenant_id] += 1

    def _make_room(self, num_blocks: int, tenant_id: TenantId, below: Worth | None) -> int:
        """Give up copies until so many blocks are ready, or `below` forbids it; return how many."""
        pool = self._pool
        if below is None:
            if pool.num_ready < num_blocks:
                pool.cool_for_run(min(num_blocks, _MIN_GROUP_BLOCKS))
                pool.cool(num_blocks)
            return num_blocks
        below = below._replace(is_within_quota=self._num_blocks_of[tenant_id] <= self._quota)
        while pool.num_ready < num_blocks and self._by_worth and self._by_worth.least() < below:
            pool.cool(pool.num_ready + 1)
        return min(num_blocks, pool.num_ready)

    def _reconsider(self, content: BlockHash) -> None:
        """Rank a copy by what it is worth now, if it may be given up at all."""
        if content in self._by_worth:
            self._by_worth.add(content)

    def _worth_of(self, content: BlockHash) -> Worth:
        block_id = self._pool.find(content)
        if block_id is None:
            return Worth()
        claims = self._claims.get(block_id)
        worth = max(claims.values()) if claims else Worth()
        return worth if self._is_within_quota(block_id) else worth._replace(is_within_quota=False)

    def _is_within_quota(self, block_id: BlockId) -> bool:
        tenant_id = self._tenant_of[block_id]
        return tenant_id is None or self._num_blocks_of[tenant_id] <= self._quota
