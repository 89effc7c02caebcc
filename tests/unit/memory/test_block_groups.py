import pytest

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId, RequestId
from evenflow.memory.block_groups import BlockGroups
from evenflow.memory.block_pool import BlockPool
from evenflow.memory.block_table import BlockTable
from evenflow.memory.eviction import LRU
from evenflow.memory.extents import Extent
from evenflow.memory.prefix_cache import BlockHash

A, B, C = (RequestId(name) for name in "abc")


class Memory:
    """Block groups over a pool of their own."""

    def __init__(self, num_blocks: int = 100, initial_group_blocks: int = 10) -> None:
        self.pool = BlockPool(num_blocks, LRU())
        self.groups = BlockGroups(self.pool, 16, initial_group_blocks)

    def table(self, request_id: RequestId, *, useful: int = 1000) -> BlockTable:
        return self.groups.create(request_id, [], useful)

    def extend(self, table: BlockTable, num_blocks: int, *, sharing: int = 1) -> None:
        self.groups.extend(table, num_blocks, num_sharing=sharing)
        self.pool.check_integrity()
        self.groups.check_integrity()


def test_extend_takes_a_whole_group_when_memory_is_plentiful():
    memory = Memory()
    table = memory.table(A)
    memory.extend(table, 3)
    assert (table.num_used_blocks, table.num_reserved_blocks) == (3, 7)
    assert memory.groups.num_reserved == 7


def test_extend_takes_the_need_when_that_is_more_than_a_group():
    memory = Memory()
    table = memory.table(A)
    memory.extend(table, 30)
    assert table.extents == [Extent(0, 30)]


def test_extend_takes_its_share_when_memory_is_divided():
    memory = Memory(num_blocks=100, initial_group_blocks=60)
    table = memory.table(A)
    memory.extend(table, 1, sharing=4)
    assert table.num_blocks == 25


def test_extend_takes_the_least_group_when_its_share_is_smaller():
    memory = Memory(num_blocks=100)
    table = memory.table(A)
    memory.extend(table, 1, sharing=50)
    assert table.num_blocks == 8


def test_extend_reserves_nothing_when_groups_are_single_blocks():
    memory = Memory(initial_group_blocks=1)
    table = memory.table(A)
    memory.extend(table, 3)
    assert table.num_blocks == 3


def test_extend_reserves_nothing_past_the_end_of_the_request():
    memory = Memory()
    table = memory.table(A, useful=5)
    memory.extend(table, 3)
    assert table.num_blocks == 5


def test_extend_takes_the_longest_run_when_no_group_is_whole():
    memory = Memory(num_blocks=20)
    for name, num_blocks in zip("vwxyz", (4, 4, 6, 1, 5), strict=True):
        memory.extend(memory.table(RequestId(name), useful=num_blocks), num_blocks)
    memory.groups.drop(RequestId("v"))
    memory.groups.drop(RequestId("x"))
    table = memory.table(A)
    memory.extend(table, 5)
    assert table.extents == [Extent(8, 6)]


def test_extend_uses_its_own_tail_before_anything_else():
    memory = Memory()
    table = memory.table(A)
    memory.extend(table, 3)
    memory.extend(table, 9)
    assert table.extents == [Extent(0, 10)]
    assert memory.groups.num_reserved == 1


def test_begin_blocks_does_what_extending_each_by_a_block_does():
    together, alone = Memory(num_blocks=16), Memory(num_blocks=16)
    for memory in (together, alone):
        memory.extend(memory.table(A), 4)
        memory.extend(memory.table(B), 2)
    for num_blocks in (3, 4, 5, 6):
        tables = [together.groups.tables[id_] for id_ in (B, A)]
        together.groups.begin_blocks(tables)
        together.groups.check_integrity()
        alone.extend(alone.groups.tables[B], num_blocks, sharing=3)
        alone.extend(alone.groups.tables[A], num_blocks + 2, sharing=3)
    for id_ in (A, B):
        table, expected = together.groups.tables[id_], alone.groups.tables[id_]
        assert table.extents == expected.extents
        assert table.num_used_blocks == expected.num_used_blocks
    assert together.groups.num_reserved == alone.groups.num_reserved


def test_extend_steals_the_end_of_the_longest_tail_when_nothing_is_free():
    memory = Memory(num_blocks=20)
    first, second = memory.table(A), memory.table(B)
    memory.extend(first, 4)
    memory.extend(second, 1)
    needy = memory.table(C)
    memory.extend(needy, 3)
    assert needy.ids.tolist() == [17, 18, 19]
    assert (first.num_reserved_blocks, second.num_reserved_blocks) == (6, 6)


def test_extend_steals_before_it_cools_the_warmer_half_of_the_cache():
    memory = Memory(num_blocks=12)
    cached, victim = memory.table(B, useful=4), memory.table(A)
    memory.extend(cached, 4)
    memory.extend(victim, 4)
    for block_id in cached.ids.tolist():
        memory.pool.register(BlockHash(bytes([block_id])), block_id)
    memory.groups.drop(B)
    needy = memory.table(C, useful=10)
    assert (memory.pool.num_evictable, memory.groups.num_reserved) == (4, 4)
    memory.extend(needy, 2)
    assert (memory.pool.num_evictable, memory.groups.num_reserved) == (2, 4)
    memory.extend(needy, 6)
    assert (memory.pool.num_evictable, memory.groups.num_reserved) == (1, 1)
    memory.extend(needy, 8)
    assert memory.groups.num_available == 0


def test_extend_finds_a_run_among_warm_blocks_whose_order_is_scattered():
    memory = Memory(num_blocks=64)
    cached = memory.table(A, useful=64)
    memory.extend(cached, 64)
    for block_id in cached.ids.tolist():
        memory.pool.register(BlockHash(bytes([block_id])), block_id)
    order = [BlockId(b) for pair in zip(range(32), range(32, 64), strict=True) for b in pair]
    memory.pool.share(order)
    memory.groups.drop(A)
    memory.pool.release(order)
    table = memory.table(B)
    memory.extend(table, 1)
    assert table.extents == [Extent(0, 8)]
    assert memory.pool.num_evictable == 56


def test_extend_leaves_victims_their_used_blocks_when_memory_is_full():
    memory = Memory(num_blocks=20, initial_group_blocks=60)
    tables = [memory.table(RequestId(str(index))) for index in range(20)]
    for table in tables:
        memory.extend(table, 1)
    assert [table.num_blocks for table in tables] == [1] * 20
    assert memory.groups.num_available == 0


def test_create_refuses_when_the_request_has_a_table():
    memory = Memory()
    memory.table(A)
    with pytest.raises(IntegrityError, match="has a block table already"):
        memory.table(A)


def test_check_integrity_raises_when_a_reference_is_missing():
    memory = Memory()
    memory.extend(memory.table(A), 2)
    memory.pool.share([BlockId(0)])
    with pytest.raises(IntegrityError, match="block 0 has 2 references"):
        memory.groups.check_integrity()


def test_check_integrity_raises_when_reserved_blocks_are_miscounted():
    memory = Memory()
    memory.extend(memory.table(A), 2)
    memory.groups.num_reserved += 1
    with pytest.raises(IntegrityError, match="8 blocks are reserved, not 9"):
        memory.groups.check_integrity()


def test_check_integrity_raises_when_a_reserved_block_is_in_use():
    memory = Memory()
    memory.extend(memory.table(A), 2)
    memory.groups.create(B, [BlockId(5)], 1)
    with pytest.raises(IntegrityError, match="a reserves block 5, which is in use"):
        memory.groups.check_integrity()
