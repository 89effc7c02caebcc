"""Copies of requests' KV below the device, through the manager that holds their tables."""

from __future__ import annotations

from typing import Any

import pytest

from evenflow.core.ids import RequestId, TenantId
from evenflow.core.pooling import PoolingParams
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.core.status import RequestStatus
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.request_copies import RequestCopies
from evenflow.memory.residency import Residency
from evenflow.memory.transfers import Tier
from support.hand_transfers import HandTransfers

BLOCK_SIZE = 4


class World:
    """A small device and a host below it."""

    def __init__(self, *, num_blocks: int = 40, num_host_blocks: int = 40, caching: bool = True):
        self.transfers = HandTransfers()
        self.residency = Residency(self.transfers, LowerTier(Tier.HOST, num_host_blocks))
        self.kv = KVCacheManager(
            num_blocks, BLOCK_SIZE, enable_prefix_caching=caching, residency=self.residency
        )
        assert self.kv.copies is not None
        self.copies: RequestCopies = self.kv.copies

    def run(self, request: Request, num_computed_tokens: int | None = None) -> Request:
        """Admit a request and compute some of its tokens, by default all but the last."""
        assert self.kv.admit(request, 0) is not None
        self.settle()
        stop = request.num_tokens - 1 if num_computed_tokens is None else num_computed_tokens
        request.num_computed_tokens = stop
        self.kv.commit(request, stop)
        return request

    def leave(self, request: Request) -> None:
        """Preempt a request, and have its place on the device forgotten."""
        self.copies.leave(request)
        self.kv.disown(request.request_id)
        self.kv.free(request.request_id)
        request.num_computed_tokens = 0
        self.settle()

    def settle(self) -> None:
        self.transfers.end()
        self.residency.poll()
        self.kv.check_integrity()


def finish(world: World, request: Request, now_s: float = 0.0) -> None:
    """End a request, keep it on the host if it is a session's, and have its place forgotten."""
    request.move_to(RequestStatus.RUNNING)
    request.move_to(RequestStatus.FINISHED_LENGTH)
    if request.session_id is not None:
        world.copies.keep(request)
    world.copies.end(request, now_s)
    world.kv.disown(request.request_id)
    world.kv.free(request.request_id)
    world.settle()


def request(name: str, num_tokens: int = 14, first: int = 0, **options: Any) -> Request:
    tokens = list(range(first, first + num_tokens))
    params = options.pop("params", SamplingParams())
    return Request(RequestId(name), tokens, params, max_num_tokens=100, **options)


def test_load_brings_back_all_but_the_last_token() -> None:
    world = World()
    a = world.run(request("a"))
    world.leave(a)
    assert world.kv.num_loadable_tokens(a) == 13
    assert world.kv.admit(a, 0) == 13
    assert world.copies.is_arriving(a.request_id)
    [ticket] = world.residency.arrivals[a.request_id].tickets
    assert ticket.num_blocks == 4
    table = world.kv.table(a.request_id).ids.tolist()
    assert [id_ for _, to in ticket.copies for id_ in to.block_ids] == table[:4]


def test_load_begins_behind_what_is_on_the_device() -> None:
    world = World()
    a = world.run(request("a"))
    world.copies.leave(a)
    world.kv.free(a.request_id)
    world.settle()
    assert world.kv.num_loadable_tokens(a) == 1
    assert world.kv.admit(a, 0) == 13
    arrival = world.residency.arrivals[a.request_id]
    assert (arrival.num_blocks, arrival.num_tokens_before) == (1, 12)


def test_partial_block_is_loaded_only_as_far_as_it_was_when_it_left() -> None:
    world = World()
    a = world.run(request("a", num_tokens=7))
    world.leave(a)
    world.run(a)
    a.token_ids += [500, 501]
    a.num_computed_tokens = 8
    assert world.copies.num_dirty(a) == 1
    world.kv.disown(a.request_id)
    world.kv.free(a.request_id)
    assert world.kv.num_loadable_tokens(a) == 4


def test_preempted_prefill_keeps_the_chunks_it_has_computed() -> None:
    world = World()
    a = world.run(request("a", num_tokens=30), 18)
    world.leave(a)
    # The block in which the chunk ended is asked for as a full one, which it was not.
    assert world.kv.num_loadable_tokens(a) == 16


def test_requests_with_one_prefix_share_the_copies_on_the_host() -> None:
    world = World()
    a = world.run(request("a", num_tokens=17))
    b = request("b", num_tokens=17)
    b.token_ids[12:] = range(800, 805)
    world.run(b)
    world.leave(a)
    assert world.copies.num_dirty(b) == 1
    world.leave(b)
    assert world.residency.host.num_kept == 5
    assert world.kv.num_loadable_tokens(b) == 16


@pytest.mark.parametrize(
    ("caching", "salt", "num_dirty"), [(True, "", 0), (True, "other", 4), (False, "", 4)]
)
def test_copies_are_shared_exactly_where_blocks_are(
    caching: bool, salt: str, num_dirty: int
) -> None:
    world = World(caching=caching)
    world.leave(world.run(request("a")))
    b = world.run(request("b", cache_salt=salt))
    assert world.copies.num_dirty(b) == num_dirty


def test_turns_of_a_session_share_copies_although_prefixes_are_not_shared() -> None:
    world = World(caching=False)
    first = world.run(request("first", session_id="s"))
    world.copies.leave(first)
    world.kv.free(first.request_id)
    world.settle()
    assert world.kv.num_loadable_tokens(request("next", 30, session_id="s")) == 12
    other = request("other", 30, session_id="s", tenant_id=TenantId("other"))
    assert world.kv.num_loadable_tokens(other) == 0


def test_write_back_copies_full_blocks_a_few_at_a_time_and_each_once() -> None:
    world = World()
    a = world.run(request("a", num_tokens=23))
    assert [world.copies.write_back(a, 3, 0.0) for _ in range(3)] == [3, 2, 0]
    assert world.copies.num_dirty(a) == 1  # the last block is not full
    stored = world.copies.leave(a)
    assert (stored.num_clean, stored.num_written) == (5, 1)


@pytest.mark.parametrize(
    "fields",
    [{"params": SamplingParams(prompt_logprobs=0)}, {"pooling": PoolingParams()}],
    ids=["prompt logprobs", "pooling"],
)
def test_nothing_is_copied_of_a_request_that_must_compute_its_prompt_anyway(
    fields: dict[str, Any],
) -> None:
    world = World()
    world.leave(world.run(request("a")))
    b = world.run(request("b", **fields), 8)
    assert (world.copies.write_back(b, 8, 0.0), world.copies.leave(b).num_written) == (0, 0)
    world.kv.free(b.request_id)
    assert world.kv.num_loadable_tokens(b) == 0


def test_copies_of_a_request_that_lives_outlive_those_of_one_that_has_ended() -> None:
    world = World(num_host_blocks=8)
    alive = world.run(request("alive", 17, first=100))
    ended = world.run(request("ended", 17))
    world.copies.leave(alive)
    world.copies.leave(ended)
    world.settle()
    ended.move_to(RequestStatus.RUNNING)
    ended.move_to(RequestStatus.FINISHED_LENGTH)
    world.copies.end(ended, 0.0)
    world.leave(world.run(request("new", first=200)))
    assert world.copies.num_dirty(alive) == 0
    assert world.copies.num_dirty(ended) == 4


def test_copies_of_the_least_urgent_make_room_first() -> None:
    world = World(num_host_blocks=8)
    casual = world.run(request("casual", first=100, priority=5))
    urgent = world.run(request("urgent", priority=-1))
    world.copies.leave(urgent)
    world.copies.leave(casual)
    world.settle()
    world.leave(world.run(request("new", num_tokens=6, first=200)))
    assert (world.copies.num_dirty(casual), world.copies.num_dirty(urgent)) == (2, 0)


def test_copies_of_who_becomes_more_urgent_while_away_outlive_others() -> None:
    world = World(num_host_blocks=8)
    names = {"once casual": 5, "once urgent": -1}
    casual, urgent = (
        world.run(request(name, 17, first=100 * at, priority=priority))
        for at, (name, priority) in enumerate(names.items())
    )
    world.leave(urgent)
    world.leave(casual)
    casual.priority, urgent.priority = urgent.priority, casual.priority
    world.copies.rerank(casual)
    world.copies.rerank(urgent)
    world.leave(world.run(request("new", 17, first=300)))
    assert [world.kv.num_loadable_tokens(a) for a in (casual, urgent)] == [16, 0]


def test_shared_copies_stay_for_who_is_away_when_another_ends() -> None:
    world = World(num_host_blocks=8)
    away = world.run(request("away", 17))
    ended = world.run(request("ended", 17))
    world.leave(away)
    finish(world, ended)
    lone = world.run(request("lone", 17, first=100, session_id="s"))
    finish(world, lone)
    world.leave(world.run(request("new", 17, first=200)))
    assert world.kv.num_loadable_tokens(away) == 16
    assert world.kv.num_loadable_tokens(request("next", 18, first=100)) == 0


def test_session_that_does_not_return_makes_room_for_one_that_was_there_since() -> None:
    world = World(num_host_blocks=12)
    finish(world, world.run(request("long ago", 33, session_id="old")), 0.0)
    finish(world, world.run(request("just now", 17, first=100, session_id="new")), 3600.0)
    world.leave(world.run(request("next", 33, first=200)))
    assert world.kv.num_loadable_tokens(request("b", 18, first=100)) == 16
    assert world.kv.num_loadable_tokens(request("a", 34)) < 32


def test_write_back_leaves_the_only_copies_of_sessions_alone() -> None:
    world = World(num_host_blocks=6)
    finish(world, world.run(request("turn", 17, session_id="s")), 0.0)
    running = world.run(request("running", 33, first=100))
    assert world.copies.write_back(running, 8, 60.0) == 2
    assert world.kv.num_loadable_tokens(request("next turn", 18)) == 16


def test_write_back_takes_the_place_of_copies_that_nobody_has_asked_for_in_a_long_time() -> None:
    world = World(num_host_blocks=6)
    finish(world, world.run(request("turn", 17, session_id="s")), 0.0)
    running = world.run(request("running", 33, first=100))
    assert world.copies.write_back(running, 8, 3600.0) == 6


def test_what_was_written_back_goes_before_the_last_block_of_a_session() -> None:
    world = World(num_host_blocks=12)
    finish(world, world.run(request("turn", 17, session_id="s")), 0.0)
    running = world.run(request("running", 33, first=100))
    assert world.copies.write_back(running, 8, 0.0) == 8
    world.settle()
    world.leave(world.run(request("away", 33, first=200)))
    assert world.kv.num_loadable_tokens(request("next turn", 18)) == 16
    assert world.copies.num_dirty(running) == 8


def test_copies_of_a_request_that_is_back_are_worth_less_than_those_of_sessions() -> None:
    world = World(num_host_blocks=8)
    finish(world, world.run(request("turn", 17, session_id="s")), 0.0)
    a = world.run(request("a", 17, first=100))
    world.leave(a)
    world.run(a)
    assert world.copies.back(a, 60.0) is None
    world.leave(world.run(request("b", 17, first=200)))
    assert world.kv.num_loadable_tokens(request("next turn", 18)) == 16
    assert world.copies.num_dirty(a) == 4


def test_copies_of_a_request_that_ends_while_it_is_away_are_awaited_no_more() -> None:
    world = World(num_host_blocks=8)
    ended, alive = (world.run(request(n, 17, first=100 * at)) for at, n in enumerate("ab"))
    world.leave(ended)
    ended.move_to(RequestStatus.FINISHED_ABORTED)
    world.copies.end(ended, 0.0)
    world.leave(alive)
    world.leave(world.run(request("new", 17, first=300)))
    assert [world.kv.num_loadable_tokens(a) for a in (ended, alive)] == [0, 16]


def test_turn_that_ends_while_it_is_away_leaves_copies_for_the_next_one() -> None:
    world = World(num_host_blocks=8)
    turn = world.run(request("turn", 17, session_id="s"))
    world.leave(turn)
    turn.move_to(RequestStatus.FINISHED_ABORTED)
    world.copies.end(turn, 0.0)
    other = world.run(request("other", 17, first=100))
    world.copies.write_back(other, 4, 60.0)
    world.leave(world.run(request("new", 17, first=200)))
    assert world.kv.num_loadable_tokens(request("next turn", 18)) == 16
    assert world.copies.num_dirty(other) == 4


def test_session_that_is_over_makes_room_before_one_that_is_not() -> None:
    world = World(num_host_blocks=8)
    over, open_ = (request(n, 17, first=100 * at, session_id=n) for at, n in enumerate("ab"))
    for turn in (over, open_):
        finish(world, world.run(turn))
    contents = world.kv.contents(over)
    world.copies.devalue((over.tenant_id, over.session_id), contents, 0, 0.0)
    world.leave(world.run(request("new", 17, first=200)))
    left = [
        world.kv.num_loadable_tokens(request(f"next {at}", 18, first=100 * at)) for at in (0, 1)
    ]
    assert left == [0, 16]


def test_disown_lets_nobody_find_copies_that_are_not_to_be_trusted() -> None:
    world = World()
    a = world.run(request("a"))
    world.copies.write_back(a, 8, 0.0)
    world.settle()
    world.copies.disown(a)
    world.kv.disown(a.request_id)
    world.kv.free(a.request_id)
    assert world.kv.num_loadable_tokens(request("b")) == 0


def test_free_lets_nobody_wait_for_what_arrives() -> None:
    world = World()
    a = world.run(request("a"))
    world.leave(a)
    world.kv.admit(a, 0)
    world.kv.free(a.request_id)
    assert not world.copies.is_arriving(a.request_id)
    world.settle()
    assert not world.residency.is_busy
