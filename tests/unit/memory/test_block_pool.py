import pytest

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId
from evenflow.memory.block_pool import BlockPool
from evenflow.memory.eviction import LRU
from evenflow.memory.extents import Extent
from evenflow.memory.prefix_cache import BlockHash

A, B, C = (BlockHash(name) for name in (b"a", b"b", b"c"))


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
    assert pool.num_free == 7


def test_allocate_raises_when_too_little_is_free(pool):
    with pytest.raises(IntegrityError, match="11 blocks are to be taken but 10 are free"):
        pool.allocate(11)


def test_release_frees_at_the_last_reference_only(pool):
    pool.allocate(2)
    pool.share(ids(0))
    pool.release(ids(0, 1))
    assert pool.ref_count(BlockId(0)) == 1
    assert pool.num_free == 9
    pool.release(ids(0))
    assert pool.num_free == 10


def test_release_keeps_cached_blocks_as_evictable(pool):
    pool.allocate(2)
    pool.register(A, BlockId(0))
    pool.release(ids(0, 1))
    assert (pool.num_free, pool.num_evictable, pool.num_cached) == (9, 1, 1)
    assert pool.find(A) == 0


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
    with pytest.raises(IntegrityError, match="block 0 is free"):
        pool.share(ids(0))


def test_register_keeps_the_first_block_of_a_content(pool):
    pool.allocate(2)
    pool.register(A, BlockId(0))
    pool.register(A, BlockId(1))
    assert pool.find(A) == 0
    assert not pool.is_cached(BlockId(1))


def test_evict_follows_the_order_of_release(pool):
    pool.allocate(3)
    for content, block_id in zip((A, B, C), ids(0, 1, 2), strict=True):
        pool.register(content, block_id)
    pool.release(ids(2, 0, 1))
    pool.evict(2)
    assert [pool.find(content) for content in (A, B, C)] == [None, 1, None]
    assert pool.num_free == 9


def test_evict_spares_what_was_found_again(pool):
    pool.allocate(2)
    for content, block_id in zip((A, B), ids(0, 1), strict=True):
        pool.register(content, block_id)
    pool.release(ids(0, 1))
    pool.share(ids(0))
    pool.release(ids(0))
    pool.evict(1)
    assert pool.find(A) == 0


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
        (corrupt_candidates, "1 candidates"),
        (corrupt_cache, "block 0 is free but its content can be found"),
        (lose_a_block, "block 0 is not in exactly one place"),
    ],
)
def test_check_integrity_raises_when_a_part_is_corrupt(corrupt, message):
    pool = BlockPool(4, LRU())
    corrupt(pool)
    with pytest.raises(IntegrityError, match=message):
        pool.check_integrity()
