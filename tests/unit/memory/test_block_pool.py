import pytest

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId
from evenflow.memory.block_pool import BlockPool
from evenflow.memory.eviction import LRU
from evenflow.memory.extents import Extent
from evenflow.memory.prefix_cache import BlockHash

A, B, C, D = (BlockHash(name) for name in (b"a", b"b", b"c", b"d"))


def ids(*block_ids: int) -> list[BlockId]:
    return [BlockId(block_id) for block_id in block_ids]


@pytest.fixture
def pool():
    pool = BlockPool(10, LRU())
    yield pool
    pool.check_integrity()


def test_allocate_gives_one_reference(pool):
    assert pool.allocate(3) == [Extent(0, 3)]
    assert [pool.ref_count(b) for b in ids(0, 1, 2, 3)] == [1, 1, 1, 0]
    assert pool.num_empty == 7


def test_allocate_raises_when_too_little_is_free(pool):
    with pytest.raises(IntegrityError, match="11 blocks are to be taken, 10 are ready"):
        pool.allocate(11)


def test_release_frees_at_the_last_reference_only(pool):
    pool.allocate(2)
    pool.share(ids(0))
    pool.release(ids(0, 1))
    assert pool.ref_count(BlockId(0)) == 1
    assert pool.num_empty == 9
    pool.release(ids(0))
    assert pool.num_empty == 10


def test_release_keeps_cached_blocks_as_evictable(pool):
    pool.allocate(2)
    pool.register(A, BlockId(0))
    pool.release(ids(0, 1))
    assert (pool.num_empty, pool.num_evictable, pool.num_cached) == (9, 1, 1)
    assert pool.find(A) == 0


def test_release_extents_frees_only_what_nobody_else_holds(pool):
    extents = pool.allocate(4)
    pool.share(ids(2))
    pool.release_extents(extents)
    assert [pool.ref_count(b) for b in ids(0, 1, 2, 3)] == [0, 0, 1, 0]
    assert pool.num_empty == 9
    pool.release_extents([Extent(2, 1)])
    assert pool.num_empty == 10


def test_release_extents_keeps_cached_blocks_last_block_first(pool):
    extents = pool.allocate(2)
    pool.register(A, BlockId(0))
    pool.register(B, BlockId(1))
    pool.release_extents(extents)
    assert (pool.num_empty, pool.num_evictable) == (8, 2)
    pool.cool(9)
    pool.allocate(9)
    assert (pool.find(A), pool.find(B)) == (0, None)


def test_release_extents_raises_when_nobody_holds_a_block(pool):
    with pytest.raises(IntegrityError, match="block 5 is released but nobody holds it"):
        pool.release_extents([Extent(4, 2)])


def test_release_raises_when_nobody_holds_the_block(pool):
    with pytest.raises(IntegrityError, match="block 4 is released but nobody holds it"):
        pool.release(ids(4))


def test_share_revives_an_evictable_block(pool):
    pool.allocate(1)
    pool.register(A, BlockId(0))
    pool.release(ids(0))
    pool.share(ids(0))
    assert (pool.num_evictable, pool.ref_count(BlockId(0))) == (0, 1)


def test_share_raises_when_the_block_is_free(pool):
    with pytest.raises(IntegrityError, match="block 0 is empty"):
        pool.share(ids(0))


def test_register_keeps_the_first_block_of_a_content(pool):
    pool.allocate(2)
    pool.register(A, BlockId(0))
    pool.register(A, BlockId(1))
    assert pool.find(A) == 0
    assert not pool.is_cached(BlockId(1))


@pytest.fixture
def full_pool(pool):
    """Blocks 0-3 carry A-D and are warm, D least recently used; nothing is ready."""
    pool.allocate(10)
    for content, block_id in zip((A, B, C, D), ids(0, 1, 2, 3), strict=True):
        pool.register(content, block_id)
    pool.release(ids(3, 2, 1, 0))
    return pool


def test_cool_makes_ready_in_the_order_of_release_and_keeps_content(full_pool):
    full_pool.cool(2)
    assert (full_pool.num_ready, full_pool.num_evictable, full_pool.num_empty) == (2, 4, 0)
    assert [full_pool.find(content) for content in (A, B, C, D)] == [0, 1, 2, 3]


def test_allocate_loses_the_content_of_the_cold_blocks_it_hands_out(full_pool):
    full_pool.cool(2)
    assert full_pool.allocate(1) == [Extent(2, 1)]
    assert [full_pool.find(content) for content in (A, B, C, D)] == [0, 1, None, 3]
    assert full_pool.num_evictable == 3


def test_cool_spares_what_was_found_again(full_pool):
    full_pool.share(ids(3))
    full_pool.release(ids(3))
    full_pool.cool(1)
    assert full_pool.allocate(1) == [Extent(2, 1)]


def test_cool_for_run_stops_when_the_run_is_there(full_pool):
    full_pool.cool_for_run(1)
    assert full_pool.num_ready == 1


def test_cool_for_run_leaves_half_of_the_evictable_blocks_warm(full_pool):
    full_pool.cool_for_run(4)
    assert full_pool.longest_ready == 2


def test_share_revives_a_cold_block(full_pool):
    full_pool.cool(2)
    full_pool.share(ids(2))
    assert (full_pool.num_ready, full_pool.ref_count(BlockId(2))) == (1, 1)
    assert full_pool.find(C) == 2


def test_empty_evictable_forgets_warm_and_cold_content(full_pool):
    full_pool.cool(2)
    full_pool.share(ids(1))
    full_pool.empty_evictable()
    assert [full_pool.find(content) for content in (A, B, C, D)] == [None, 1, None, None]
    assert (full_pool.num_empty, full_pool.num_evictable) == (3, 0)


def corrupt_refs(pool):
    pool._ref_counts[0] = 1


def corrupt_candidates(pool):
    pool._eviction.add(A)


def corrupt_cache(pool):
    pool._cache.insert(A, BlockId(0))


def lose_a_block(pool):
    pool._allocator.allocate(1)


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (corrupt_refs, "block 0 is not in exactly one place"),
        (corrupt_candidates, "counted are 1 and 0"),
        (corrupt_cache, "0 blocks are warm and 1 cold"),
        (lose_a_block, "block 0 is not in exactly one place"),
    ],
)
def test_check_integrity_raises_when_a_part_is_corrupt(corrupt, message):
    pool = BlockPool(4, LRU())
    corrupt(pool)
    with pytest.raises(IntegrityError, match=message):
        pool.check_integrity()
