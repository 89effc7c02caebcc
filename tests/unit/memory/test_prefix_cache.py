import pytest

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId
from evenflow.memory.prefix_cache import BlockHash, HashChain, PrefixCache, block_hash, root_hash

ROOT = root_hash("")


def test_block_hash_is_the_same_for_the_same_parent_and_tokens():
    assert block_hash(ROOT, [1, 2, 3]) == block_hash(ROOT, (1, 2, 3))
    assert len(block_hash(ROOT, [1, 2, 3])) == 16


def test_block_hash_differs_when_parent_tokens_or_their_order_differ():
    parent = block_hash(ROOT, [9])
    hashes = {
        block_hash(ROOT, [1, 2]),
        block_hash(ROOT, [2, 1]),
        block_hash(ROOT, [1, 2, 0]),
        block_hash(parent, [1, 2]),
        block_hash(root_hash("tenant"), [1, 2]),
    }
    assert len(hashes) == 5


def test_block_hash_accepts_the_largest_token_ids():
    assert block_hash(ROOT, [2**31 - 1]) != block_hash(ROOT, [0])


def test_root_hash_is_no_block_hash_when_the_salt_spells_one():
    spelled = (ROOT + b"\x01\x00\x00\x00").decode("latin-1")
    assert root_hash(spelled) != block_hash(ROOT, [1])
    assert root_hash("") != root_hash("a")


def test_hash_chain_links_every_block_to_the_one_before():
    chain = HashChain(2, ROOT)
    tokens = [1, 2, 3, 4, 5]
    first = block_hash(ROOT, [1, 2])
    assert chain.hash_at(1, tokens) == block_hash(first, [3, 4])
    assert chain.hash_at(0, tokens) == first


def test_hash_chain_does_not_hash_a_block_twice():
    chain = HashChain(2, ROOT)
    before = chain.hash_at(0, [1, 2])
    assert chain.hash_at(0, [7, 7]) is before


def test_hash_chain_fork_goes_its_own_way_after_the_shared_blocks():
    parent = HashChain(2, ROOT)
    parent.hash_at(1, [1, 2, 3, 4])
    child = parent.fork(1)
    assert child.hash_at(0, [1, 2, 5, 6]) == parent.hash_at(0, [1, 2, 3, 4])
    assert child.hash_at(1, [1, 2, 5, 6]) != parent.hash_at(1, [1, 2, 3, 4])


def test_prefix_cache_finds_a_block_until_it_is_removed():
    cache, content = PrefixCache(), BlockHash(b"content")
    assert cache.insert(content, BlockId(3))
    assert cache.find(content) == 3
    assert cache.hash_of(BlockId(3)) == content
    assert cache.remove(content) == 3
    assert cache.find(content) is None
    assert cache.hash_of(BlockId(3)) is None


def test_prefix_cache_keeps_the_first_block_when_content_comes_twice():
    cache, content = PrefixCache(), BlockHash(b"content")
    cache.insert(content, BlockId(3))
    assert not cache.insert(content, BlockId(4))
    assert cache.find(content) == 3
    assert cache.hash_of(BlockId(4)) is None
    assert len(cache) == 1


def test_check_integrity_raises_when_the_maps_differ():
    cache = PrefixCache()
    cache.insert(BlockHash(b"content"), BlockId(3))
    cache._hash_of[BlockId(4)] = BlockHash(b"content")
    with pytest.raises(IntegrityError, match="inverse"):
        cache.check_integrity()
