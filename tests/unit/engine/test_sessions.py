from __future__ import annotations

import math

import pytest

from evenflow.core.clock import VirtualClock
from evenflow.core.errors import (
    DuplicateSessionError,
    InvalidRequestError,
    PinLimitError,
    SessionLimitError,
    SessionNotFoundError,
)
from evenflow.core.ids import TenantId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.sessions import Session, SessionTable
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.switching import SwitchOptions
from support.scripted_engine import make_engine
from support.slow_tiers import slow_tiers

ANN, BOB = TenantId("ann"), TenantId("bob")


@pytest.fixture
def kv() -> KVCacheManager:
    return KVCacheManager(32, 4)


@pytest.fixture
def table(kv: KVCacheManager) -> SessionTable:
    return SessionTable(kv, max_pinned_blocks=8)


def computed(tokens: list[int]) -> Request:
    request = Request("r", tokens, SamplingParams(), max_num_tokens=len(tokens))
    request.num_computed_tokens = request.num_tokens
    return request


def cache(kv: KVCacheManager, tokens: list[int]) -> None:
    request = computed(tokens)
    assert kv.admit(request, 0) is not None
    kv.commit(request, request.num_tokens)
    kv.free(request.request_id)


def turn(
    engine: Engine,
    name: str,
    tokens: list[int],
    *,
    session_id: str | None = None,
    max_tokens: int = 4,
    n: int = 1,
) -> tuple[list[int], int]:
    """Run one request; return its output tokens and how many prompt tokens were cached."""
    params = SamplingParams(max_tokens=max_tokens, n=n)
    engine.add_request(name, tokens, params, session_id=session_id)
    output: list[int] = []
    num_cached = -1
    while engine.has_work:
        for delta in engine.step():
            if delta.index == 0:
                output.append(delta.token_id)
                num_cached = delta.metrics.num_cached_tokens if delta.metrics else num_cached
        engine.scheduler.check_integrity()
    return output, num_cached


def flood(engine: Engine, num_requests: int = 10) -> None:
    for number in range(num_requests):
        turn(engine, f"flood{number}", [(number * 50 + i) % 1000 for i in range(300, 340)])


@pytest.mark.parametrize(("session_id", "expected"), [("talk", 24), (None, 0)])
def test_engine_finds_the_whole_last_turn_after_a_flood_only_in_a_session(
    session_id: str | None, expected: int
) -> None:
    engine, _ = make_engine(num_blocks=32, max_model_len=64)
    engine.sessions.open("default", 60.0, "talk")
    first = [*range(21)]
    output, _ = turn(engine, "first", first, session_id=session_id)
    flood(engine)
    # The last token that was sampled never had KV; the 24 before it fill six blocks.
    _, num_cached = turn(engine, "second", [*first, *output, 7, 7], session_id=session_id)
    assert num_cached == expected


def test_engine_moves_the_pin_from_turn_to_turn() -> None:
    engine, _ = make_engine(num_blocks=32, max_model_len=64)
    session = engine.sessions.open("default", 60.0)
    tokens = [*range(10)]
    for number in range(4):
        output, _ = turn(engine, f"turn{number}", tokens, session_id=session.session_id)
        tokens += output
        expected = (len(tokens) - 1) // 4 * 4
        assert session.num_pinned_tokens == expected
        assert engine.scheduler.kv.stats().num_pinned == expected // 4
    turn(engine, "other", [*range(500, 510)], session_id=session.session_id)
    assert engine.scheduler.kv.stats().num_pinned == 3


def test_engine_keeps_the_first_of_several_completions() -> None:
    engine, _ = make_engine()
    session = engine.sessions.open("default", 60.0)
    output, _ = turn(engine, "r", [*range(10)], session_id=session.session_id, n=3)
    assert session.token_ids.tolist() == [*range(10), *output]


def test_engine_leaves_the_pin_alone_when_a_request_is_aborted() -> None:
    engine, _ = make_engine()
    session = engine.sessions.open("default", 60.0)
    turn(engine, "first", [*range(10)], session_id=session.session_id)
    before = session.token_ids.tolist()
    engine.add_request("r", [*range(500, 510)], SamplingParams(), session_id=session.session_id)
    engine.step()
    engine.abort("r")
    engine.step()
    assert session.token_ids.tolist() == before
    assert session.num_pinned_tokens == 12


def test_engine_lets_go_when_the_time_to_live_is_over_even_without_work() -> None:
    clock = VirtualClock()
    engine, _ = make_engine(clock=clock)
    session = engine.sessions.open("default", 5.0)
    turn(engine, "r", [*range(10)], session_id=session.session_id)
    clock.advance(4.9)
    engine.expire(clock.now_s())
    assert engine.scheduler.kv.stats().num_pinned == 3
    clock.advance(0.1)
    engine.expire(clock.now_s())
    assert engine.scheduler.kv.stats().num_pinned == 0
    assert session.expires_s is None
    _, num_cached = turn(engine, "s", [*range(10), 5, 5], session_id=session.session_id)
    assert num_cached == 8, "what is not pinned stays cached as long as there is room"
    assert session.expires_s == clock.now_s() + 5.0


def test_step_lets_go_of_pins_in_time_while_others_run() -> None:
    clock = VirtualClock()
    engine, _ = make_engine(clock=clock)
    for name, ttl_s, start in (("long", 9.0, 0), ("short", 2.0, 100), ("longer", 12.0, 200)):
        engine.sessions.open("default", ttl_s, name)
        turn(engine, name, [*range(start, start + 10)], session_id=name, max_tokens=1)
    engine.add_request("other", [7, 7], SamplingParams(max_tokens=50))
    num_pinned = []
    for _ in range(14):
        engine.step()
        num_pinned.append(engine.scheduler.kv.stats().num_pinned)
        clock.advance(1.0)
    assert num_pinned == [6] * 2 + [4] * 7 + [2] * 3 + [0] * 2


def test_engine_always_leaves_room_for_the_longest_request() -> None:
    engine, _ = make_engine(num_blocks=20, max_model_len=64)
    for number in range(3):
        session = engine.sessions.open("default", 60.0)
        start = 100 * number
        turn(engine, f"r{number}", [*range(start, start + 10)], session_id=session.session_id)
    sessions = list(engine.sessions)
    assert [session.num_pinned_tokens for session in sessions] == [12, 0, 0]
    assert "and 4 leave" in sessions[1].refusal
    output, _ = turn(engine, "long", [*range(600, 660)], max_tokens=None)
    assert len(output) == 4


def test_add_request_refuses_a_session_of_another_tenant() -> None:
    engine, _ = make_engine()
    engine.sessions.open(ANN, 60.0, "talk")
    with pytest.raises(SessionNotFoundError, match="'talk'"):
        engine.add_request("r", [1, 2], SamplingParams(), tenant_id=BOB, session_id="talk")
    assert not engine.has_work


def test_open_gives_every_tenant_names_of_its_own(table: SessionTable) -> None:
    table.open(ANN, 1.0, "talk")
    table.open(BOB, 1.0, "talk")
    with pytest.raises(DuplicateSessionError):
        table.open(ANN, 1.0, "talk")
    table.release(BOB, "talk")
    assert [session.tenant_id for session in table] == [ANN]
    with pytest.raises(SessionNotFoundError):
        table.release(BOB, "talk")


def test_open_makes_up_a_name_that_is_free(table: SessionTable) -> None:
    table.open(ANN, 1.0, "session-1")
    assert table.open(ANN, 1.0).session_id == "session-2"


@pytest.mark.parametrize("ttl_s", [0, -1.0, math.inf, math.nan, True, "soon"])
def test_open_refuses_a_bad_time_to_live(table: SessionTable, ttl_s: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        table.open(ANN, ttl_s)
    assert caught.value.param == "ttl_s"


@pytest.mark.parametrize("session_id", ["", "x" * 129])
def test_open_refuses_a_bad_name(table: SessionTable, session_id: str) -> None:
    with pytest.raises(InvalidRequestError, match="1 to 128 characters"):
        table.open(ANN, 1.0, session_id)


def test_open_forgets_the_oldest_session_without_a_pin_when_there_are_too_many(
    kv: KVCacheManager,
) -> None:
    table = SessionTable(kv, max_pinned_blocks=8, max_sessions=2)
    cache(kv, [*range(9)])
    table.keep(table.open(ANN, 10.0, "pinned"), computed([*range(9)]), 0.0)
    table.open(ANN, 10.0, "idle")
    third = table.open(ANN, 10.0, "third")
    assert [session.session_id for session in table] == ["pinned", "third"]
    table.keep(third, computed([*range(9)]), 0.0)
    with pytest.raises(SessionLimitError, match="2 are open"):
        table.open(ANN, 10.0)


def test_pin_renews_what_has_expired_as_long_as_it_is_cached(
    kv: KVCacheManager, table: SessionTable
) -> None:
    cache(kv, [*range(9)])
    session = table.open(ANN, 10.0, "talk")
    table.keep(session, computed([*range(9)]), 0.0)
    table.expire(10.0)
    assert kv.stats().num_pinned == 0
    table.pin(ANN, "talk", 20.0, ttl_s=100.0)
    assert kv.stats().num_pinned == 2
    table.expire(119.0)
    assert kv.stats().num_pinned == 2
    table.expire(120.0)
    kv.reset_prefix_cache()
    assert table.pin(ANN, "talk", 130.0).num_pinned_tokens == 0
    assert session.expires_s is None


def test_pin_that_is_refused_changes_nothing(kv: KVCacheManager) -> None:
    table = SessionTable(kv, max_pinned_blocks=1)
    cache(kv, [*range(9)])
    session = table.open(ANN, 10.0, "talk")
    table.keep(session, computed([*range(9)]), 0.0)
    assert session.refusal is not None
    with pytest.raises(PinLimitError):
        table.pin(ANN, "talk", 5.0, ttl_s=99.0)
    assert (session.ttl_s, session.expires_s) == (10.0, None)


def test_release_lets_go_and_a_late_request_pins_nothing(
    kv: KVCacheManager, table: SessionTable
) -> None:
    cache(kv, [*range(9)])
    session = table.open(ANN, 10.0, "talk")
    table.keep(session, computed([*range(9)]), 0.0)
    table.release(ANN, "talk")
    assert kv.stats().num_pinned == 0
    table.open(ANN, 10.0, "talk")
    table.keep(session, computed([*range(9)]), 0.0)
    assert kv.stats().num_pinned == 0


def test_describe_tells_how_long_the_pin_lasts(kv: KVCacheManager, table: SessionTable) -> None:
    cache(kv, [*range(9)])
    session = table.open(ANN, 10.0, "talk")
    table.keep(session, computed([*range(9)]), 2.0)
    assert table.describe(session, 5.0) == {
        "id": "talk",
        "tenant": "ann",
        "ttl_s": 10.0,
        "expires_in_s": 7.0,
        "num_tokens": 9,
        "num_pinned_tokens": 8,
        "kept": {"device": 8},
        "refusal": None,
    }


# With tiers below the device


def engine_with_host(clock: VirtualClock, num_host_blocks: int = 64, **options) -> Engine:
    engine, _ = make_engine(
        clock=clock,
        num_blocks=32,
        max_model_len=64,
        residency=slow_tiers(clock, num_host_blocks),
        switching=SwitchOptions(mode="swap", prefetch=False, write_back=False),
        **options,
    )
    return engine


def kept(engine: Engine, session: Session) -> dict[str, int]:
    """Return what of a session would be found where, once what is under way has landed."""
    transfers = engine.scheduler.kv.residency.transfers
    transfers.wait(list(transfers.in_flight))
    engine.scheduler.switcher.landed()
    engine.scheduler.check_integrity()
    return engine.sessions.describe(session, 0.0)["kept"]


@pytest.mark.parametrize("caching", [True, False])
def test_session_on_the_host_pins_nothing_and_is_loaded_for_the_next_turn(caching: bool) -> None:
    engine = engine_with_host(VirtualClock(), enable_prefix_caching=caching)
    session = engine.sessions.open("default", 60.0)
    first = [*range(21)]
    output, _ = turn(engine, "first", first, session_id=session.session_id)
    assert engine.scheduler.kv.stats().num_pinned == session.num_pinned_tokens == 0
    assert kept(engine, session) == ({"device": 24} if caching else {"host": 24})
    flood(engine)
    assert kept(engine, session) == {"host": 24}
    _, num_cached = turn(engine, "second", [*first, *output, 7, 7], session_id=session.session_id)
    assert num_cached == 24


def test_session_on_the_host_says_what_was_given_up_since() -> None:
    engine = engine_with_host(VirtualClock(), num_host_blocks=8)
    one, other = (engine.sessions.open("default", 60.0) for _ in range(2))
    turn(engine, "one", [*range(21)], session_id=one.session_id)
    assert kept(engine, one) == {"device": 24}
    turn(engine, "other", [*range(100, 121)], session_id=other.session_id)
    flood(engine)
    assert kept(engine, one) == {"host": 8}
    assert kept(engine, other) == {"host": 24}


def test_session_on_the_host_gives_way_to_others_when_its_time_is_over() -> None:
    clock = VirtualClock()
    engine = engine_with_host(clock, num_host_blocks=17)
    old, short, newcomer = (engine.sessions.open("default", 10.0) for _ in range(3))
    turn(engine, "old", [*range(53)], session_id=old.session_id)
    assert old.expires_s == clock.now_s() + 10.0
    clock.advance(10.0)
    engine.expire(clock.now_s())
    assert old.expires_s is None
    assert kept(engine, old) == {"device": 56}, "nothing else needed the room so far"
    for session, first, length in ((short, 100, 9), (newcomer, 200, 17)):
        prompt = [*range(first, first + length)]
        turn(engine, session.session_id, prompt, session_id=session.session_id)
        assert kept(engine, session) == {"device": length + 3}
    flood(engine)
    assert kept(engine, old) == {"host": 36}, "the end of a chain goes first"
    assert kept(engine, short) == {"host": 12}
    assert kept(engine, newcomer) == {"host": 20}


def test_pin_holds_a_session_on_the_device_though_there_is_a_host() -> None:
    engine = engine_with_host(VirtualClock())
    session = engine.sessions.open("default", 60.0, "talk")
    tokens = [*range(21)]
    output, _ = turn(engine, "first", tokens, session_id="talk")
    engine.sessions.pin("default", "talk", 0.0)
    flood(engine)
    assert kept(engine, session) == {"device": 24}
    turn(engine, "second", [*tokens, *output, 7, 7], session_id="talk")
    assert session.num_pinned_tokens == 28, "the pin moves with the session"
    engine.sessions.release("default", "talk")
    assert engine.scheduler.kv.stats().num_pinned == 0


def test_open_forgets_an_old_session_on_the_host_when_there_are_too_many() -> None:
    engine = engine_with_host(VirtualClock())
    engine.sessions = table = SessionTable(engine.scheduler.kv, max_pinned_blocks=8, max_sessions=2)
    for name in ("first", "second"):
        table.open("default", 60.0, name)
        turn(engine, name, [*range(10)], session_id=name)
    table.open("default", 60.0, "third")
    assert [session.session_id for session in table] == ["second", "third"]
