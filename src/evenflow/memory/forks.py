"""Blocks that several requests hold because one was forked from another: copied on write.

    parent  [ 3  4  5 ]      forked at token 10, with 4 tokens per block: block 5 is not full,
    child   [ 3  4  5 ]      and whoever writes token 10 first does so into a copy of it
              │
            [ 3  4  9 ]      now nothing is shared any more into which either will write

Knows: up to which token each request may hold blocks that a fork of it has too.
Does not know: who writes, and when; what blocks contain.
"""

from __future__ import annotations

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId, RequestId
from evenflow.memory.block_groups import BlockGroups
from evenflow.memory.block_pool import BlockPool


class Forks:
    """Requests that share tables.

    Args:
        pool: knows who else holds a block.
        groups: the block tables.
        block_size: tokens per block.

    Attributes:
        shared_until: by request, tokens before which it may share blocks; dropped once it has
            written past.
    """

    def __init__(self, pool: BlockPool, groups: BlockGroups, block_size: int) -> None:
        self.shared_until: dict[RequestId, int] = {}
        self._pool = pool
        self._groups = groups
        self._block_size = block_size

    def fork(self, parent_id: RequestId, child_id: RequestId, num_tokens: int) -> None:
        """Let a child hold the blocks with the first `num_tokens` tokens of its parent.

        Raises:
            IntegrityError: the child holds blocks already, or the parent has no such tokens.
        """
        parent = self._groups.tables[parent_id]
        num_blocks = self._blocks_for(num_tokens)
        if num_blocks > parent.num_used_blocks:
            raise IntegrityError(
                f"request {child_id} cannot share {num_tokens} tokens of {parent_id}",
                why=f"that has room for {parent.capacity_tokens}",
            )
        shared: list[BlockId] = parent.ids[:num_blocks].tolist()
        self._groups.create(child_id, shared, parent.max_num_blocks)
        self.shared_until[child_id] = num_tokens
        self.shared_until[parent_id] = max(num_tokens, self.shared_until.get(parent_id, 0))

    def prepare_write(
        self, request_id: RequestId, first_token: int, num_tokens: int
    ) -> list[tuple[BlockId, BlockId]] | None:
        """Make private what is about to be written; see `KVCacheManager.prepare_write`."""
        shared_until = self.shared_until.get(request_id)
        if shared_until is None:
            return []
        table = self._groups.tables[request_id]
        stop_shared = self._blocks_for(shared_until)
        stop = min(self._blocks_for(first_token + num_tokens), stop_shared)
        start = first_token // self._block_size
        sources = {
            index: block_id
            for index, block_id in enumerate(table.ids[start:stop].tolist(), start)
            if self._pool.ref_count(block_id) > 1 or self._pool.is_cached(block_id)
        }
        if len(sources) > self._groups.num_available:
            return None
        extents = self._groups.take(len(sources))
        destinations = [block_id for extent in extents for block_id in extent.block_ids]
        for index, destination in zip(sources, destinations, strict=True):
            table.replace(index, destination)
        self._pool.release(sources.values())
        if stop == stop_shared:
            del self.shared_until[request_id]
        return list(zip(sources.values(), destinations, strict=True))

    def forget(self, request_id: RequestId) -> None:
        """A request holds nothing any more."""
        self.shared_until.pop(request_id, None)

    def check_integrity(self) -> None:
        """Check that only requests with a table share.

        Raises:
            IntegrityError: another does.
        """
        if not self.shared_until.keys() <= self._groups.tables.keys():
            raise IntegrityError("a request that holds nothing is marked as sharing")

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)
