import pytest

from evenflow.core.errors import IntegrityError
from evenflow.memory.allocator import ExtentAllocator
from evenflow.memory.extents import Extent


def allocator_with_free(*extents: Extent, num_blocks: int = 100) -> ExtentAllocator:
    allocator = ExtentAllocator(num_blocks)
    allocator.allocate(num_blocks)
    for extent in extents:
        allocator.free(extent)
    return allocator


def test_allocate_takes_the_head_of_the_smallest_extent_that_fits():
    allocator = allocator_with_free(Extent(0, 10), Extent(20, 4), Extent(40, 5))
    assert allocator.allocate(4) == Extent(20, 4)
    assert allocator.allocate(4) == Extent(40, 4)
    assert allocator.free_extents() == [Extent(0, 10), Extent(44, 1)]


def test_allocate_takes_the_lowest_address_among_equals():
    allocator = allocator_with_free(Extent(50, 3), Extent(10, 3), Extent(30, 3))
    assert allocator.allocate(2) == Extent(10, 2)


def test_allocate_returns_none_when_no_extent_is_long_enough():
    allocator = allocator_with_free(Extent(0, 3), Extent(10, 3))
    assert allocator.allocate(4) is None
    assert allocator.num_free == 6


@pytest.mark.parametrize("num_blocks", [0, -1])
def test_allocate_refuses_when_asked_for_nothing(num_blocks):
    with pytest.raises(ValueError, match="cannot allocate"):
        ExtentAllocator(4).allocate(num_blocks)


def test_allocate_scattered_prefers_one_extent_when_one_fits():
    allocator = allocator_with_free(Extent(0, 3), Extent(10, 8), Extent(30, 5))
    assert allocator.allocate_scattered(5) == [Extent(30, 5)]


def test_allocate_scattered_takes_the_largest_first_when_none_fits():
    allocator = allocator_with_free(Extent(0, 3), Extent(10, 8), Extent(30, 5), Extent(50, 2))
    assert allocator.allocate_scattered(15) == [Extent(10, 8), Extent(30, 5), Extent(50, 2)]
    assert allocator.free_extents() == [Extent(0, 3)]


def test_allocate_scattered_takes_nothing_when_too_little_is_free():
    allocator = allocator_with_free(Extent(0, 3), Extent(10, 3))
    assert allocator.allocate_scattered(7) is None
    assert allocator.free_extents() == [Extent(0, 3), Extent(10, 3)]


def test_allocate_scattered_of_nothing_is_nothing():
    assert ExtentAllocator(4).allocate_scattered(0) == []


def test_free_merges_with_both_neighbours():
    allocator = allocator_with_free(Extent(0, 3), Extent(5, 3))
    allocator.free(Extent(3, 2))
    assert allocator.free_extents() == [Extent(0, 8)]
    assert allocator.largest_free == 8


def test_largest_free_is_zero_when_all_is_taken():
    allocator = allocator_with_free()
    assert (allocator.largest_free, allocator.num_free) == (0, 0)


def test_claim_splits_the_extent_around_the_block():
    allocator = allocator_with_free(Extent(10, 5))
    allocator.claim(12)
    assert allocator.free_extents() == [Extent(10, 2), Extent(13, 2)]
    assert allocator.num_free == 4


@pytest.mark.parametrize("block_id", [9, 15, 0, 99])
def test_claim_refuses_when_the_block_is_not_free(block_id):
    allocator = allocator_with_free(Extent(10, 5))
    with pytest.raises(IntegrityError, match="claimed but not free"):
        allocator.claim(block_id)


@pytest.mark.parametrize("extent", [Extent(4, 2), Extent(8, 4), Extent(2, 20), Extent(0, 1)])
def test_free_refuses_when_a_block_is_free_already(extent):
    allocator = allocator_with_free(Extent(0, 1), Extent(4, 6))
    with pytest.raises(IntegrityError, match="not all of it was taken"):
        allocator.free(extent)


def test_check_integrity_raises_when_extents_touch():
    allocator = allocator_with_free(Extent(0, 10))
    allocator._insert(10, 2)
    with pytest.raises(IntegrityError, match="not apart from its neighbour"):
        allocator.check_integrity()


def test_check_integrity_raises_when_the_size_index_is_out_of_step():
    allocator = allocator_with_free(Extent(0, 10))
    allocator._by_size.append((3, 50))
    with pytest.raises(IntegrityError, match="size index"):
        allocator.check_integrity()


def test_allocate_at_takes_what_is_free_from_there_on() -> None:
    allocator = ExtentAllocator(10)
    assert allocator.allocate_at(3, 2) == Extent(3, 2)
    assert allocator.allocate_at(4, 2) is None
    assert allocator.allocate_at(8, 5) == Extent(8, 2)
    assert allocator.free_extents() == [Extent(0, 3), Extent(5, 3)]
    allocator.check_integrity()


def test_allocate_apart_leaves_room_on_both_sides() -> None:
    allocator = ExtentAllocator(16)
    assert allocator.allocate_apart(4) == Extent(6, 4)
    assert allocator.allocate_apart(2) == Extent(12, 2)
    assert allocator.allocate_apart(7) is None
    allocator.check_integrity()
