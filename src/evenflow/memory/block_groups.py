"""How block tables grow: by groups, whose unused tails can be taken back.

How many blocks a table is given at once is a matter of pressure (FastSwitch, arXiv 2411.18424):
what it needs or, if that is more, its share of the empty blocks, but at least 8 and at most
`initial_group_blocks`. The surplus is its reserved tail. Later growth is then contiguous and free
of charge; and since whoever runs short may cut tails off, memory is wasted no more than by paging
one block at a time.

Room comes from blocks that are ready, which is to say empty or cold. When too few are, it is made
in this order: warm blocks of the colder half of the cache are cooled until there is a run worth
taking; the reserved tails of other tables are cut off, longest first; the rest of the cache is
cooled.

Knows: all block tables and their tails.
Does not know: tokens, contents, why a table grows.

Invariants:
    A block's reference count is the number of tables and pins it is in.
    A reserved block is in one table only and has no known content.
    `num_reserved` is the sum of all reserved tails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId, RequestId
from evenflow.memory.block_pool import BlockPool
from evenflow.memory.block_table import BlockTable
from evenflow.memory.extents import Extent, coalesce

# Copies of 5 to 10 blocks already saturate a PCIe link, so less is not worth a group.
_MIN_GROUP_BLOCKS = 8


class BlockGroups:
    """The block tables over one pool.

    Args:
        pool: where blocks come from and go to.
        block_size: tokens per block.
        initial_group_blocks: most blocks a table is given at once beyond its need.

    Attributes:
        tables: the block table of each request that holds one.
        num_reserved: blocks in reserved tails.
    """

    def __init__(self, pool: BlockPool, block_size: int, initial_group_blocks: int) -> None:
        self.tables: dict[RequestId, BlockTable] = {}
        self.num_reserved = 0
        self._pool = pool
        self._block_size = block_size
        self._initial_group_blocks = initial_group_blocks

    @property
    def num_available(self) -> int:
        """Blocks that one table could obtain at most, its own reserved tail included."""
        return self._pool.num_empty + self._pool.num_evictable + self.num_reserved

    def create(
        self, request_id: RequestId, block_ids: Sequence[BlockId], max_num_blocks: int
    ) -> BlockTable:
        """Make a table of blocks that others hold or that are evictable.

        Raises:
            IntegrityError: the request has a table already.
        """
        if request_id in self.tables:
            raise IntegrityError(f"request {request_id} has a block table already")
        self._pool.share(block_ids)
        table = BlockTable(self._block_size, max_num_blocks)
        for extent in coalesce(block_ids):
            table.append(extent)
        table.use(len(block_ids))
        self.tables[request_id] = table
        return table

    def extend(self, table: BlockTable, num_blocks: int, *, num_sharing: int) -> None:
        """Let a table use `num_blocks` blocks; what it lacks must be available.

        Args:
            table: takes its own reserved tail first.
            num_blocks: length of its used part afterwards.
            num_sharing: requests among which the empty blocks are thought to be divided.
        """
        if num_blocks <= table.num_blocks:
            self._use(table, num_blocks)
            return
        self._use(table, table.num_blocks)
        need = num_blocks - table.num_blocks
        share = max(self._pool.num_empty // num_sharing, _MIN_GROUP_BLOCKS)
        useful = table.max_num_blocks - table.num_blocks
        for extent in self.take(need, min(share, self._initial_group_blocks, useful)):
            table.append(extent)
            self.num_reserved += extent.length
        self._use(table, num_blocks)

    def begin_blocks(self, tables: Iterable[BlockTable]) -> None:
        """Let each table use one block more, which must be available; the same as `extend`."""
        for table in tables:
            num_blocks = table.num_used_blocks + 1
            if num_blocks <= table.num_blocks:
                table.use(num_blocks)
                self.num_reserved -= 1
            else:
                self.extend(table, num_blocks, num_sharing=len(self.tables) + 1)

    def take(self, need: int, group_blocks: int = 0) -> list[Extent]:
        """Take `need` blocks, which must be available, or a longer run.

        The result is one run of `group_blocks` if there is one, else the longest run if that covers
        the need, else just the need in several runs.
        """
        if self._pool.num_ready < need:
            self._pool.cool_for_run(min(max(need, group_blocks), _MIN_GROUP_BLOCKS))
            self._make_room(need)
        return self._pool.allocate(max(need, min(group_blocks, self._pool.longest_ready)))

    def drop(self, request_id: RequestId) -> None:
        """Give back a table, last block first, so that a prefix outlives what follows it."""
        table = self.tables.pop(request_id)
        self.num_reserved -= table.num_reserved_blocks
        self._pool.release_extents(reversed(table.extents))

    def check_integrity(self, pinned: Mapping[BlockId, int] | None = None) -> None:
        """Recount references and tails from the tables.

        Args:
            pinned: number of pins by block.

        Raises:
            IntegrityError: an invariant does not hold.
        """
        memberships = Counter(pinned)
        num_reserved = 0
        for request_id, table in self.tables.items():
            table.check_integrity()
            block_ids: list[BlockId] = table.ids.tolist()
            memberships.update(block_ids)
            num_reserved += table.num_reserved_blocks
            for block_id in block_ids[table.num_used_blocks :]:
                if self._pool.ref_count(block_id) != 1 or self._pool.is_cached(block_id):
                    raise IntegrityError(f"{request_id} reserves block {block_id}, which is in use")
        if num_reserved != self.num_reserved:
            raise IntegrityError(f"{num_reserved} blocks are reserved, not {self.num_reserved}")
        for block_id in Extent(0, self._pool.num_blocks).block_ids:
            ref_count = self._pool.ref_count(block_id)
            if ref_count != memberships[block_id]:
                raise IntegrityError(
                    f"block {block_id} has {ref_count} references",
                    why=f"it is in {memberships[block_id]} block tables and pins",
                )

    def _use(self, table: BlockTable, num_blocks: int) -> None:
        """Move the boundary between the used part and the reserved tail."""
        self.num_reserved -= num_blocks - table.num_used_blocks
        table.use(num_blocks)

    def _make_room(self, num_blocks: int) -> None:
        """See to it that `num_blocks` blocks are ready."""
        while self._pool.num_ready < num_blocks and self.num_reserved:
            table = max(self.tables.values(), key=attrgetter("num_reserved_blocks"))
            missing = num_blocks - self._pool.num_ready
            for extent in table.cut_tail(min(missing, table.num_reserved_blocks)):
                self._pool.release(extent.block_ids)
                self.num_reserved -= extent.length
        self._pool.cool(num_blocks)
