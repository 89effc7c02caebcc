import numpy as np
import pytest

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId
from evenflow.memory.block_table import BlockTable
from evenflow.memory.extents import Extent


def table_of(*extents: Extent, num_used: int = 0) -> BlockTable:
    table = BlockTable(block_size=16, max_num_blocks=1000)
    for extent in extents:
        table.append(extent)
    table.use(num_used)
    table.check_integrity()
    return table


def test_block_table_lists_ids_as_int32_in_logical_order():
    table = table_of(Extent(40, 3), Extent(7, 2))
    assert table.ids.tolist() == [40, 41, 42, 7, 8]
    assert table.ids.dtype == np.int32
    assert table.num_blocks == 5


def test_append_merges_when_the_extent_continues_the_last_one():
    assert table_of(Extent(4, 2), Extent(6, 3)).extents == [Extent(4, 5)]


def test_append_keeps_all_ids_when_the_array_grows():
    table = BlockTable(block_size=16, max_num_blocks=1000)
    for start in range(0, 900, 3):
        table.append(Extent(start, 1))
    assert table.ids.tolist() == list(range(0, 900, 3))
    table.check_integrity()


def test_use_sets_capacity_and_reserved_tail():
    table = table_of(Extent(4, 6), num_used=4)
    assert table.capacity_tokens == 64
    assert table.num_reserved_blocks == 2


def test_replace_splits_the_extent_in_the_middle():
    table = table_of(Extent(4, 5), num_used=5)
    table.replace(2, BlockId(90))
    assert table.ids.tolist() == [4, 5, 90, 7, 8]
    assert table.extents == [Extent(4, 2), Extent(90, 1), Extent(7, 2)]


def test_replace_joins_when_the_new_block_continues_its_neighbours():
    table = table_of(Extent(4, 2), Extent(90, 1), Extent(7, 2))
    table.replace(2, BlockId(6))
    assert table.extents == [Extent(4, 5)]


def test_cut_tail_returns_the_last_blocks_in_logical_order():
    table = table_of(Extent(4, 3), Extent(20, 2), Extent(30, 1), num_used=1)
    assert table.cut_tail(4) == [Extent(6, 1), Extent(20, 2), Extent(30, 1)]
    assert table.ids.tolist() == [4, 5]
    assert table.extents == [Extent(4, 2)]


def test_cut_tail_refuses_when_a_used_block_would_go():
    with pytest.raises(ValueError, match="cannot cut 3 of 2 reserved"):
        table_of(Extent(4, 5), num_used=3).cut_tail(3)


def test_check_integrity_raises_when_extents_and_ids_differ():
    table = table_of(Extent(4, 5))
    table.ids[0] = 50
    with pytest.raises(IntegrityError, match="do not list the blocks"):
        table.check_integrity()


def test_check_integrity_raises_when_a_block_is_twice_in_the_table():
    table = BlockTable(block_size=16, max_num_blocks=10)
    table.append(Extent(4, 2))
    table.append(Extent(4, 1))
    with pytest.raises(IntegrityError, match="twice"):
        table.check_integrity()


def test_check_integrity_raises_when_more_is_used_than_there_is():
    table = table_of(Extent(4, 2))
    table.use(3)
    with pytest.raises(IntegrityError, match="3 of 2 blocks"):
        table.check_integrity()
