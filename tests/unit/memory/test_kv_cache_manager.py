import pytest

from evenflow.core.errors import IntegrityError, PinLimitError
from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.memory.block_map import BlockState
from evenflow.memory.kv_cache_manager import KVCacheManager

BLOCK_SIZE = 4


def request_of(name: str, tokens: list[int], *, salt: str = "", max_num_tokens: int = 1000):
    return Request(
        RequestId(name),
        tokens,
        SamplingParams(),
        max_num_tokens=max_num_tokens,
        cache_salt=salt,
    )


def manager_of(num_blocks: int = 20, **options) -> KVCacheManager:
    options.setdefault("initial_group_blocks", 1)
    return KVCacheManager(num_blocks, BLOCK_SIZE, **options)


def run(kv: KVCacheManager, request: Request) -> int | None:
    """Admit a request and compute all its tokens."""
    num_cached = kv.admit(request, 0)
    if num_cached is not None:
        request.num_computed_tokens = request.num_tokens
        kv.commit(request, request.num_tokens)
    return num_cached


@pytest.fixture
def kv():
    kv = manager_of()
    yield kv
    kv.check_integrity()


def test_admit_gives_room_for_the_whole_prompt_in_one_extent(kv):
    request = request_of("a", list(range(30)))
    assert kv.admit(request, 0) == 0
    assert kv.table(request.request_id).ids.tolist() == list(range(8))
    assert len(kv.table(request.request_id).extents) == 1


def test_admit_reserves_by_pressure_when_memory_is_plentiful():
    kv = manager_of(100, initial_group_blocks=60)
    few, many = request_of("a", [1]), request_of("b", [1])
    kv.admit(few, 0)
    assert kv.num_held_blocks(few.request_id) == 60
    kv.admit(many, 3)
    assert kv.num_held_blocks(many.request_id) == 10
    assert kv.num_stealable_blocks == 59 + 9


def test_admit_reserves_no_more_than_the_request_can_use():
    kv = manager_of(100, initial_group_blocks=60)
    request = request_of("a", [1, 2], max_num_tokens=9)
    kv.admit(request, 0)
    assert kv.num_held_blocks(request.request_id) == 3


def test_admit_changes_nothing_when_there_is_no_room(kv):
    before = kv.stats()
    assert kv.admit(request_of("a", [1] * 81), 0) is None
    assert kv.stats() == before
    assert not kv.holds(RequestId("a"))


def test_admit_finds_the_full_blocks_of_an_equal_prefix(kv):
    first, second = request_of("a", list(range(11))), request_of("b", [*range(10), 99])
    run(kv, first)
    assert kv.match_prefix(second) == 8
    assert kv.admit(second, 1) == 8
    shared = kv.table(first.request_id).ids[:2].tolist()
    assert kv.table(second.request_id).ids[:2].tolist() == shared
    stats = kv.stats()
    assert (stats.num_query_tokens, stats.num_hit_tokens) == (22, 8)


def test_admit_always_leaves_a_token_to_compute(kv):
    run(kv, request_of("a", list(range(8))))
    assert kv.admit(request_of("b", list(range(8))), 1) == 4


def test_admit_finds_a_finished_request_over_turns(kv):
    first = request_of("a", list(range(10)))
    run(kv, first)
    first.token_ids += [10, 11]
    assert kv.ensure(first.request_id, 12)
    kv.commit(first, 12)
    kv.free(first.request_id)
    assert kv.admit(request_of("b", list(range(20))), 0) == 12


def test_admit_finds_the_generated_tokens_of_a_preempted_request(kv):
    request = request_of("a", list(range(10)))
    run(kv, request)
    request.token_ids += [10, 11, 12]
    kv.ensure(request.request_id, 13)
    kv.commit(request, 13)
    kv.free(request.request_id)
    request.num_preemptions = 1
    assert kv.admit(request, 0) == 12
    assert kv.stats().num_query_tokens == 10


def test_admit_never_shares_when_the_salts_differ(kv):
    run(kv, request_of("a", list(range(9)), salt="one"))
    assert kv.admit(request_of("b", list(range(9)), salt="two"), 1) == 0
    assert kv.admit(request_of("c", list(range(9)), salt="one"), 1) == 8


def test_admit_finds_nothing_when_prefix_caching_is_off():
    kv = manager_of(enable_prefix_caching=False)
    run(kv, request_of("a", list(range(9))))
    kv.free(RequestId("a"))
    assert kv.stats().num_free == 20
    assert run(kv, request_of("b", list(range(9)))) == 0
    assert kv.stats().num_query_tokens == 0


def test_admit_spares_its_own_hits_when_it_has_to_evict():
    kv = manager_of(4)
    run(kv, request_of("a", list(range(16))))
    kv.free(RequestId("a"))
    request = request_of("b", [*range(8), *[77] * 8])
    assert kv.admit(request, 0) == 8
    kv.check_integrity()


def test_blocks_needed_counts_evictable_hits_but_not_held_ones(kv):
    run(kv, request_of("a", list(range(8))))
    request = request_of("b", list(range(12)))
    assert kv.blocks_needed(request, 12) == 1
    kv.free(RequestId("a"))
    assert kv.blocks_needed(request, 12) == 3
    assert kv.num_available_blocks == 20


def test_blocks_needed_counts_the_own_reserved_tail():
    kv = manager_of(20, initial_group_blocks=10)
    request = request_of("a", [1])
    kv.admit(request, 0)
    assert kv.num_held_blocks(request.request_id) == 10
    assert kv.blocks_needed(request, 4) == 0
    assert kv.blocks_needed(request, 20 * BLOCK_SIZE) == 19 == kv.num_available_blocks
    assert kv.ensure(request.request_id, 20 * BLOCK_SIZE)


def test_ensure_changes_nothing_when_there_is_no_room(kv):
    request = request_of("a", [1])
    kv.admit(request, 0)
    before = kv.stats()
    assert not kv.ensure(request.request_id, 81)
    assert kv.stats() == before


def test_ensure_keeps_room_when_asked_for_less(kv):
    request = request_of("a", [1] * 20)
    kv.admit(request, 0)
    assert kv.ensure(request.request_id, 3)
    assert kv.table(request.request_id).num_used_blocks == 5


def test_ensure_wastes_less_than_a_block_per_request_when_memory_is_full():
    kv = manager_of(50, initial_group_blocks=60)
    requests = [request_of(str(index), [index]) for index in range(7)]
    for request in requests:
        assert kv.admit(request, 0) is not None
    num_tokens = 1
    while all(kv.ensure(request.request_id, num_tokens + 1) for request in requests):
        num_tokens += 1
    stats = kv.stats()
    assert (stats.num_free, stats.num_reserved, stats.num_evictable) == (0, 0, 0)
    assert kv.usage == 1
    assert num_tokens == 7 * BLOCK_SIZE  # 50 // 7 blocks each


def test_commit_registers_a_block_only_when_it_is_full(kv):
    request = request_of("a", list(range(9)))
    kv.admit(request, 0)
    kv.commit(request, 3)
    assert kv.stats().num_cached == 0
    kv.commit(request, 4)
    assert kv.stats().num_cached == 1
    kv.commit(request, 9)
    assert kv.stats().num_cached == 2


def test_commit_keeps_the_first_block_when_two_compute_the_same(kv):
    first, second = request_of("a", list(range(5))), request_of("b", list(range(5)))
    kv.admit(first, 0)
    kv.admit(second, 1)
    kv.commit(first, 5)
    kv.commit(second, 5)
    kv.free(second.request_id)
    assert kv.stats().num_evictable == 0
    assert kv.admit(request_of("c", list(range(5))), 1) == 4
    first_block = int(kv.table(first.request_id).ids[0])
    assert int(kv.table(RequestId("c")).ids[0]) == first_block


def test_free_gives_up_the_deepest_block_first():
    kv = manager_of(4)
    run(kv, request_of("a", list(range(16))))
    kv.free(RequestId("a"))
    kv.admit(request_of("b", [50]), 0)
    assert kv.match_prefix(request_of("c", list(range(20)))) == 12


def test_free_forgets_a_request_that_only_looked(kv):
    request = request_of("a", list(range(8)))
    kv.match_prefix(request)
    kv.free(request.request_id)
    assert not len(kv._prefixes)


def test_reset_prefix_cache_keeps_what_requests_hold(kv):
    run(kv, request_of("a", list(range(8))))
    run(kv, request_of("b", list(range(50, 58))))
    kv.free(RequestId("a"))
    kv.reset_prefix_cache()
    assert kv.match_prefix(request_of("c", list(range(9)))) == 0
    assert kv.match_prefix(request_of("c2", list(range(50, 59)))) == 8


def test_usage_is_the_share_held_by_live_requests(kv):
    run(kv, request_of("a", list(range(20))))
    assert kv.usage == pytest.approx(5 / 20)
    kv.free(RequestId("a"))
    assert kv.usage == 0


def test_occupancy_counts_what_is_kept_for_its_content_and_not_what_is_reserved():
    kv = manager_of(initial_group_blocks=4)
    kv.admit(request_of("a", list(range(8))), 0)
    assert kv.num_stealable_blocks > 0
    assert kv.occupancy == pytest.approx(2 / 20)
    run(kv, request_of("b", list(range(50, 58))))
    kv.free(RequestId("b"))
    assert kv.occupancy == pytest.approx(4 / 20)
    kv.reset_prefix_cache()
    assert kv.occupancy == pytest.approx(2 / 20)


def test_stats_report_mean_extent_length(kv):
    assert kv.stats().mean_extent_blocks == 0
    for name, num_blocks in [("a", 4), ("b", 1), ("c", 6)]:
        kv.admit(request_of(name, [ord(name)] * num_blocks * BLOCK_SIZE), 0)
    kv.free(RequestId("b"))
    assert kv.ensure(RequestId("a"), 5 * BLOCK_SIZE)
    assert kv.table(RequestId("a")).ids.tolist() == [0, 1, 2, 3, 4]
    assert kv.ensure(RequestId("a"), 6 * BLOCK_SIZE)
    assert kv.stats().mean_extent_blocks == pytest.approx((6 + 6) / 3)


@pytest.fixture
def forked(kv):
    """A parent with 10 computed tokens and a child that shares 9 of them."""
    parent, child = request_of("p", list(range(10))), request_of("c", list(range(10)))
    run(kv, parent)
    kv.fork(parent.request_id, child.request_id, 9)
    return parent, child


def test_fork_shares_full_and_partial_blocks(kv, forked):
    parent, child = forked
    shared = kv.table(parent.request_id).ids.tolist()
    assert kv.table(child.request_id).ids.tolist() == shared
    assert kv.usage == pytest.approx(3 / 20)
    assert kv.has_shared_tables


def test_admit_returns_the_shared_tokens_when_the_request_is_a_fork(kv, forked):
    _, child = forked
    assert kv.admit(child, 1) == 9
    assert kv.stats().num_query_tokens == 10


def test_prepare_write_copies_the_partial_block_for_the_first_writer_only(kv, forked):
    parent, child = forked
    source = int(kv.table(parent.request_id).ids[2])
    copies = kv.prepare_write(child.request_id, 9, 1)
    assert copies == [(source, int(kv.table(child.request_id).ids[2]))]
    assert int(kv.table(child.request_id).ids[2]) != source
    assert kv.prepare_write(parent.request_id, 10, 1) == []
    assert int(kv.table(parent.request_id).ids[2]) == source
    assert not kv.has_shared_tables


def test_prepare_write_copies_nothing_when_the_other_side_is_gone(kv, forked):
    parent, child = forked
    kv.free(parent.request_id)
    assert kv.prepare_write(child.request_id, 9, 1) == []
    assert not kv.has_shared_tables


def test_prepare_write_copies_a_cached_block_even_when_held_once(kv):
    parent, child = request_of("p", list(range(8))), request_of("c", list(range(8)))
    run(kv, parent)
    kv.fork(parent.request_id, child.request_id, 8)
    kv.free(parent.request_id)
    assert kv.admit(child, 0) == 7
    cached = int(kv.table(child.request_id).ids[1])
    copies = kv.prepare_write(child.request_id, 7, 1)
    assert copies == [(cached, int(kv.table(child.request_id).ids[1]))]
    assert kv.match_prefix(request_of("d", list(range(9)))) == 8


def test_prepare_write_leaves_a_pinned_block_alone(kv):
    """The child is the only request that holds it, and would spoil what is pinned."""
    parent, child = request_of("p", list(range(8))), request_of("c", list(range(8)))
    run(kv, parent)
    assert pin(kv, "mine", list(range(8))) == 8
    kv.fork(parent.request_id, child.request_id, 7)
    kv.free(parent.request_id)
    before = kv.table(child.request_id).ids.tolist()
    (copy,) = kv.prepare_write(child.request_id, 7, 1)
    assert copy[0] == before[1]
    assert kv.table(child.request_id).ids.tolist() == [before[0], copy[1]]
    assert pin(kv, "mine", list(range(8))) == 8


def test_copies_of_a_step_are_a_chain_when_a_source_is_given_away_again():
    """The first writer lets go of a cached block; the second one's copy goes right there."""
    kv = manager_of(5)
    storage: list[object] = [None] * 5
    forks = []
    for name, start in (("p", 0), ("q", 50)):
        tokens = list(range(start, start + 8))
        parent, child = request_of(name, tokens), request_of(f"{name}-child", tokens)
        run(kv, parent)
        for index, block_id in enumerate(kv.table(parent.request_id).ids.tolist()):
            storage[block_id] = tokens[4 * index : 4 * index + 4]
        kv.fork(parent.request_id, child.request_id, 7)
        kv.free(parent.request_id)
        forks.append(child)
    copies = [pair for child in forks for pair in kv.prepare_write(child.request_id, 7, 1)]
    assert copies[1][1] == copies[0][0], "the second copy overwrites what the first one reads"
    for source, destination in copies:
        storage[destination] = storage[source]
    for child in forks:
        held = [storage[block_id] for block_id in kv.table(child.request_id).ids.tolist()]
        assert held == [child.token_ids[:4], child.token_ids[4:]]
    kv.check_integrity()
    assert kv.match_prefix(request_of("x", list(range(9)))) == 4


def test_prepare_write_changes_nothing_when_there_is_no_room(kv, forked):
    _, child = forked
    kv.admit(request_of("x", [70] * 17 * BLOCK_SIZE), 1)
    before = kv.table(child.request_id).ids.tolist()
    assert kv.prepare_write(child.request_id, 9, 1) is None
    assert kv.table(child.request_id).ids.tolist() == before
    assert kv.has_shared_tables


def test_prepare_write_has_nothing_to_do_when_nothing_was_forked(kv):
    request = request_of("a", list(range(9)))
    kv.admit(request, 0)
    assert kv.prepare_write(request.request_id, 0, 9) == []


def test_prepare_write_remembers_what_a_short_write_left_shared(kv):
    parent, child = request_of("p", list(range(10))), request_of("c", list(range(10)))
    run(kv, parent)
    kv.fork(parent.request_id, child.request_id, 10)
    assert len(kv.prepare_write(child.request_id, 2, 4)) == 2
    assert len(kv.prepare_write(child.request_id, 6, 4)) == 1
    assert kv.prepare_write(child.request_id, 10, 4) == []


def test_commit_registers_what_a_fork_computes_past_the_shared_tokens(kv):
    parent, child = request_of("p", list(range(6))), request_of("c", [*range(6), 60, 61, 62])
    run(kv, parent)
    kv.fork(parent.request_id, child.request_id, 6)
    kv.admit(child, 1)
    kv.prepare_write(child.request_id, 6, 3)
    kv.commit(child, 9)
    assert kv.match_prefix(request_of("d", [*range(6), 60, 61, 99])) == 8
    assert kv.match_prefix(request_of("e", [*range(6), 60, 99, 99])) == 4


def test_fork_refuses_when_the_parent_has_no_such_tokens(kv):
    run(kv, request_of("p", list(range(4))))
    with pytest.raises(IntegrityError, match="has room for 4"):
        kv.fork(RequestId("p"), RequestId("c"), 5)


def test_check_integrity_raises_when_a_sharer_holds_nothing():
    kv = manager_of()
    kv._forks.shared_until[RequestId("ghost")] = 3
    with pytest.raises(IntegrityError, match="marked as sharing"):
        kv.check_integrity()


def test_check_integrity_raises_when_a_table_is_missing():
    kv = manager_of()
    kv._next_full[RequestId("ghost")] = BLOCK_SIZE
    with pytest.raises(IntegrityError, match="not those that hold blocks"):
        kv.check_integrity()


def blocks_in(kv: KVCacheManager, state: BlockState) -> int:
    return sum(length for _, length, run_state, _ in kv.block_map() if run_state == state)


def pin(kv: KVCacheManager, name: str, tokens: list[int], limit: int = 10, salt: str = "") -> int:
    return kv.pin(name, tokens, salt, max_pinned_blocks=limit)


def computed_and_freed(kv: KVCacheManager, name: str, tokens: list[int]) -> None:
    request = request_of(name, tokens, max_num_tokens=len(tokens))
    assert run(kv, request) is not None
    kv.free(request.request_id)


def test_pin_keeps_a_prefix_through_a_flood_that_evicts_everything_else(kv):
    first, second = list(range(18)), list(range(100, 118))
    computed_and_freed(kv, "first", first)
    computed_and_freed(kv, "second", second)
    assert pin(kv, "mine", first) == 16
    for number in range(10):
        computed_and_freed(kv, f"flood{number}", list(range(200 + 64 * number, 264 + 64 * number)))
    kv.reset_prefix_cache()
    assert kv.match_prefix(request_of("a", first)) == 16
    assert kv.match_prefix(request_of("b", second)) == 0
    assert (kv.stats().num_pinned, kv.num_available_blocks) == (4, 16)


def test_pin_keeps_only_what_is_cached_under_the_same_salt(kv):
    computed_and_freed(kv, "a", list(range(16)))
    assert pin(kv, "other", list(range(16)), salt="other") == 0
    assert pin(kv, "mine", [*range(12), 99, 99, 99, 99]) == 12


def test_pin_refuses_more_than_the_limit_and_says_the_numbers(kv):
    computed_and_freed(kv, "a", list(range(24)))
    computed_and_freed(kv, "b", list(range(100, 124)))
    pin(kv, "a", list(range(24)), limit=8)
    with pytest.raises(PinLimitError, match="12 pinned blocks, and 8 leave"):
        pin(kv, "b", list(range(100, 124)), limit=8)
    assert kv.stats().num_pinned == 6
    assert pin(kv, "b", list(range(100, 108)), limit=8) == 8


def test_pin_counts_shared_blocks_once_and_the_ones_it_moves_away_from_not_at_all(kv):
    computed_and_freed(kv, "a", list(range(24)))
    computed_and_freed(kv, "b", [*range(16), *range(100, 108)])
    assert pin(kv, "one", list(range(24)), limit=8) == 24
    assert pin(kv, "two", [*range(16), *range(100, 108)], limit=8) == 24
    assert pin(kv, "one", [*range(16), *range(100, 108)], limit=6) == 24
    assert kv.stats().num_pinned == 6
    kv.unpin("one")
    assert kv.stats().num_pinned == 6
    kv.unpin("two")
    assert (kv.stats().num_pinned, kv.stats().num_evictable) == (0, 8)


def test_pin_that_moves_still_counts_what_another_pin_keeps(kv):
    computed_and_freed(kv, "a", list(range(24)))
    computed_and_freed(kv, "b", list(range(100, 124)))
    for name in ("one", "two"):
        pin(kv, name, list(range(24)), limit=8)
    with pytest.raises(PinLimitError, match="12 pinned blocks"):
        pin(kv, "one", list(range(100, 124)), limit=8)


def test_disown_cuts_pins_where_the_distrusted_blocks_begin(kv):
    computed_and_freed(kv, "a", list(range(16)))
    pin(kv, "mine", list(range(16)))
    failed = request_of("failed", [*range(8), 99, 99])
    run(kv, failed)
    kv.disown(failed.request_id)
    kv.free(failed.request_id)
    assert kv.stats().num_pinned == 0
    assert kv.match_prefix(request_of("again", list(range(16)))) == 0


def test_block_map_gives_shared_blocks_to_the_first_holder_and_shows_every_state():
    kv = manager_of(12, initial_group_blocks=3)
    computed_and_freed(kv, "old", list(range(100, 108)))
    pin(kv, "pin", list(range(100, 104)))
    first, second = request_of("first", list(range(10))), request_of("second", list(range(10)))
    run(kv, first)
    run(kv, second)
    states = {state: blocks_in(kv, state) for state in BlockState}
    stats = kv.stats()
    assert (states[BlockState.PINNED], stats.num_pinned) == (1, 1)
    assert (states[BlockState.EVICTABLE], stats.num_evictable) == (1, 1)
    assert states[BlockState.USED] == stats.num_used == 4
    by_owner = {
        name: sum(
            length for _, length, state, owner in kv.block_map() if (state, owner) == (1, name)
        )
        for name in ("first", "second")
    }
    assert by_owner == {"first": 3, "second": 1}


def test_block_map_ends_a_run_where_a_group_ends():
    kv = manager_of(8)
    holder, high = request_of("low", [1] * 16), request_of("high", [2] * 16)
    run(kv, holder)
    run(kv, high)
    kv.free(holder.request_id)
    kv.reset_prefix_cache()
    assert kv.ensure(high.request_id, 24)
    assert kv.table(high.request_id).ids.tolist() == [4, 5, 6, 7, 0, 1]
    assert kv.ensure(high.request_id, 32)
    assert kv.block_map() == [(0, 4, 1, "high"), (4, 4, 1, "high")]


def test_adopt_lets_a_request_find_what_was_computed_elsewhere(kv):
    tokens = list(range(10))
    assert kv.adopt(tokens) == 8
    kv.check_integrity()
    assert kv.stats().num_evictable == 2
    assert kv.admit(request_of("a", [*tokens, 10]), 0) == 8
    assert kv.adopt(tokens) == 8
    kv.check_integrity()


def test_adopt_changes_nothing_when_there_is_not_enough_room(kv):
    run(kv, request_of("a", list(range(4 * (kv.num_blocks - 1)))))
    before = kv.stats()
    assert kv.adopt(list(range(1000, 1012))) == 0
    assert kv.stats() == before
    kv.check_integrity()


def test_adopt_is_for_requests_of_the_same_salt(kv):
    kv.adopt(list(range(8)), "one")
    assert kv.admit(request_of("a", list(range(9)), salt="two"), 0) == 0
    assert kv.admit(request_of("b", list(range(9)), salt="one"), 1) == 8
