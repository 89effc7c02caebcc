"""Blocks that are loaded before their request comes, through the manager that has room to spare."""

from __future__ import annotations

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.residency import Residency
from evenflow.memory.transfers import Tier
from support.hand_transfers import HandTransfers

BLOCK_SIZE = 4


def request(name: str, num_tokens: int, first: int = 0) -> Request:
    tokens = list(range(first, first + num_tokens))
    return Request(RequestId(name), tokens, SamplingParams(), max_num_tokens=200)


class World:
    """A device that has lost what the host has of request `a`: 4 blocks, of which 3 are full."""

    def __init__(self, *, num_blocks: int = 20, caching: bool = True) -> None:
        self.transfers = HandTransfers()
        residency = Residency(self.transfers, LowerTier(Tier.HOST, 40))
        self.kv = KVCacheManager(
            num_blocks, BLOCK_SIZE, enable_prefix_caching=caching, residency=residency
        )
        self.residency = residency
        self.a = request("a", 15)
        assert self.kv.copies is not None
        self.run(self.a)
        self.kv.copies.leave(self.a)
        self.kv.disown(self.a.request_id)
        self.kv.free(self.a.request_id)
        self.a.num_computed_tokens = 0
        self.settle()
        self.transfers.tickets.clear()

    def run(self, request: Request) -> None:
        assert self.kv.admit(request, 0) is not None
        request.num_computed_tokens = request.num_tokens - 1
        self.kv.commit(request, request.num_computed_tokens)

    def prefetch(self, max_blocks: int) -> None:
        assert self.kv.prefetcher is not None
        self.kv.prefetcher.start(self.a, max_blocks)

    def settle(self, failure: str | None = None) -> None:
        self.transfers.end(failure=failure)
        self.residency.poll()
        if self.kv.prefetcher is not None:
            self.kv.prefetcher.settle()
        self.kv.check_integrity()


def test_prefetch_brings_full_blocks_that_are_found_once_they_have_arrived() -> None:
    world = World()
    world.prefetch(32)
    assert [ticket.num_blocks for ticket in world.transfers.tickets] == [3]
    assert world.kv.match_prefix(world.a) == 0
    world.kv.check_integrity()
    world.settle()
    assert world.kv.match_prefix(world.a) == 12
    assert world.kv.num_loadable_tokens(world.a) == 2


def test_prefetch_brings_no_more_than_it_may_and_goes_on_from_there() -> None:
    world = World()
    for num_tokens in (8, 12, 12):
        world.prefetch(2)
        world.settle()
        assert world.kv.match_prefix(world.a) == num_tokens
    assert [ticket.num_blocks for ticket in world.transfers.tickets] == [2, 1]


def test_prefetch_leaves_those_who_run_a_block_to_grow_into() -> None:
    world = World(num_blocks=6)
    world.run(request("b", 16, first=500))
    assert world.kv.num_available_blocks == 2
    world.prefetch(32)
    assert [ticket.num_blocks for ticket in world.transfers.tickets] == [1]


def test_prefetched_blocks_make_room_for_whoever_needs_it() -> None:
    world = World(num_blocks=6)
    world.prefetch(32)
    world.settle()
    assert world.kv.admit(request("b", 24, first=500), 0) == 0


def test_prefetch_does_not_bring_again_what_was_lost() -> None:
    world = World(num_blocks=6)
    world.prefetch(32)
    world.settle()
    b = request("b", 24, first=500)
    world.kv.admit(b, 0)
    world.kv.free(b.request_id)
    world.prefetch(32)
    assert len(world.transfers.tickets) == 1
    world.kv.free(world.a.request_id)  # it has gone, and may come again
    world.prefetch(32)
    assert len(world.transfers.tickets) == 2


def test_prefetched_blocks_are_not_found_when_loading_them_failed() -> None:
    world = World()
    world.prefetch(32)
    world.settle(failure="a checksum is wrong")
    assert world.kv.match_prefix(world.a) == 0
    assert world.kv.stats().num_free == 20


def test_request_that_comes_before_its_blocks_sends_for_them_itself() -> None:
    world = World()
    world.prefetch(32)
    assert world.kv.admit(world.a, 0) == 14
    world.settle()
    assert world.kv.match_prefix(request("like a", 13)) == 12
    world.kv.free(world.a.request_id)
    world.kv.check_integrity()


def test_nothing_is_prefetched_that_could_not_be_found_on_the_device() -> None:
    assert World(caching=False).kv.prefetcher is None
