from __future__ import annotations

import math
from itertools import pairwise

import pytest

from evenflow.core.clock import VirtualClock
from evenflow.core.errors import ConfigError, IntegrityError
from evenflow.memory.extents import Extent
from evenflow.memory.transfers import Copy, Tier, TransferEngine, overlapping
from evenflow.simulation.links import SimulatedTransfers, host_links
from evenflow.simulation.shapes import LinkShape, load_device
from support.tickets import tickets_of

MIB = 2**20
OUT = (Tier.DEVICE, Tier.HOST)
IN = (Tier.HOST, Tier.DEVICE)


def transfers(
    *, num_pieces: int = 1, bytes_per_block: int = 1000, **link: float
) -> tuple[SimulatedTransfers, VirtualClock]:
    clock = VirtualClock(10.0)
    shape = LinkShape(**{"bytes_per_s": 1000.0} | link)
    links = {OUT: shape, IN: shape}
    engine = SimulatedTransfers(
        clock, links, bytes_per_block=bytes_per_block, num_pieces=num_pieces
    )
    return engine, clock


def blocks(start: int, length: int) -> Copy:
    return Extent(start, length), Extent(start, length)


def test_transfer_takes_its_bytes_and_the_latency() -> None:
    engine, clock = transfers(latency_s=0.5)
    ticket = engine.submit(*OUT, [blocks(0, 3), blocks(7, 1)])
    assert engine.next_completion_s() == pytest.approx(14.5)
    clock.advance_to(14.4)
    assert engine.poll() == []
    clock.advance_to(14.5)
    assert tickets_of(engine.poll()) == [ticket]
    assert engine.poll() == []


def test_transfer_of_small_copies_takes_their_dispatch() -> None:
    engine, clock = transfers(dispatch_s=0.1, bytes_per_s=1e9)
    engine.wait([engine.submit(*OUT, [blocks(n * 2, 1) for n in range(5)])])
    assert clock.now_s() == pytest.approx(10.5)


def test_transfer_of_small_copies_takes_no_less_than_the_engines_least() -> None:
    engine, clock = transfers(min_copy_s=0.2, bytes_per_s=1e9)
    engine.wait([engine.submit(*OUT, [blocks(n * 2, 1) for n in range(5)])])
    assert clock.now_s() == pytest.approx(11.0)


def test_transfer_of_scattered_pieces_takes_what_the_papers_table_says() -> None:
    # 1,000 tokens of Llama-3-8B: 63 blocks of 2 MiB in 64 pieces, over 25 GB/s at 4 us a call.
    link = {"bytes_per_s": 25e9, "dispatch_s": 4e-6}
    for num_groups, expected_ms in ((63, 16.1), (13, 5.3), (1, 5.3)):
        engine, clock = transfers(num_pieces=64, bytes_per_block=2 * MIB, **link)
        bounds = [63 * n // num_groups for n in range(num_groups + 1)]
        copies = [blocks(a, b - a) for a, b in pairwise(bounds)]
        engine.wait([engine.submit(*OUT, copies)])
        assert (clock.now_s() - 10) * 1e3 == pytest.approx(expected_ms, rel=0.01)


def test_transfers_in_one_direction_share_the_link_equally() -> None:
    engine, clock = transfers()
    long, short = engine.submit(*OUT, [blocks(0, 6)]), engine.submit(*OUT, [blocks(6, 2)])
    engine.wait([short])
    assert clock.now_s() == pytest.approx(14.0)
    engine.wait([long])
    assert clock.now_s() == pytest.approx(18.0)
    assert tickets_of(engine.poll()) == [short, long]


def test_transfers_in_both_directions_do_not_slow_each_other() -> None:
    engine, clock = transfers()
    engine.submit(*OUT, [blocks(0, 4)])
    engine.wait([engine.submit(*IN, [blocks(8, 4)])])
    assert clock.now_s() == pytest.approx(14.0)
    assert len(engine.poll()) == 2


def test_transfers_wait_for_the_dispatching_thread_in_turn() -> None:
    engine, clock = transfers(dispatch_s=1.0, bytes_per_s=1e9)
    engine.submit(*OUT, [blocks(n * 2, 1) for n in range(3)])
    engine.wait([engine.submit(*IN, [blocks(20, 1)])])
    assert clock.now_s() == pytest.approx(14.0)


def test_transfer_limited_by_its_dispatch_leaves_the_rest_of_the_link_to_others() -> None:
    engine, _ = transfers(dispatch_s=5.0)
    # Dispatched from 10 to 15: 2 s of work at a rate of 0.4.
    starved = engine.submit(*OUT, [blocks(0, 2)])
    # Dispatched from 15 to 20: 8 s of work, 1.6 s of it per second.
    busy = engine.submit(*OUT, [blocks(2, 8)])
    assert engine.completion_s(starved) == pytest.approx(15.0)
    assert engine.completion_s(busy) == pytest.approx(23.0)


def test_next_completion_changes_nothing() -> None:
    engine, clock = transfers(latency_s=0.25)
    assert engine.next_completion_s() == math.inf
    ticket = engine.submit(*OUT, [blocks(0, 4)])
    clock.advance_to(11.0)
    assert engine.next_completion_s() == engine.next_completion_s() == pytest.approx(14.25)
    clock.advance_to(14.1)  # its link is done, it is landing
    assert engine.next_completion_s() == pytest.approx(14.25)
    assert list(engine.in_flight) == [ticket]


def test_in_flight_tickets_fence_their_ranges_until_they_are_done() -> None:
    engine, _ = transfers()
    first = engine.submit(*OUT, [(Extent(0, 4), Extent(100, 4))])
    second = engine.submit(*OUT, [(Extent(4, 4), Extent(104, 4))])
    assert overlapping(engine.in_flight, Tier.DEVICE, [Extent(3, 1)]) == [first]
    assert overlapping(engine.in_flight, Tier.HOST, [Extent(107, 9)]) == [second]
    engine.wait([first])
    assert overlapping(engine.in_flight, Tier.DEVICE, [Extent(0, 4)]) == []


def test_wait_for_a_ticket_that_is_done_takes_no_time() -> None:
    engine, clock = transfers()
    ticket = engine.submit(*OUT, [blocks(0, 1)])
    clock.advance_to(20.0)
    engine.wait([ticket])
    assert clock.now_s() == 20.0
    assert tickets_of(engine.poll()) == [ticket]


def test_transfer_of_nothing_is_done_at_once() -> None:
    engine, _ = transfers(dispatch_s=1.0)
    ticket = engine.submit(*OUT, [])
    assert tickets_of(engine.poll()) == [ticket]


def test_submit_refuses_sides_that_are_not_equally_long() -> None:
    engine, _ = transfers()
    with pytest.raises(IntegrityError, match="cannot copy"):
        engine.submit(*OUT, [(Extent(0, 2), Extent(0, 3))])


def test_submit_refuses_a_link_that_is_not_there() -> None:
    engine, _ = transfers()
    with pytest.raises(IntegrityError, match="no link from disk to host"):
        engine.submit(Tier.DISK, Tier.HOST, [blocks(0, 1)])


def test_host_links_are_those_of_the_device() -> None:
    device = load_device("a100")
    assert host_links(device) == {OUT: device.links["pcie"], IN: device.links["pcie"]}
    assert (Tier.HOST, Tier.DISK) in host_links(load_device("cpu"))
    with pytest.raises(ConfigError, match="no link"):
        host_links(device.model_copy(update={"links": {}}))


def test_simulated_transfers_are_a_transfer_engine() -> None:
    engine: TransferEngine = transfers()[0]
    assert engine.poll() == []


def test_transfer_begins_when_what_it_comes_after_is_done() -> None:
    engine, clock = transfers()
    first = engine.submit(*OUT, [blocks(0, 4)])
    second = engine.submit(*IN, [blocks(0, 2)], after=[first])
    other = engine.submit(*IN, [blocks(9, 1)])
    engine.wait([other])
    assert clock.now_s() == pytest.approx(11.0)
    engine.wait([second])
    assert clock.now_s() == pytest.approx(16.0)
    seconds = [outcome.seconds for outcome in engine.poll()]
    assert seconds == pytest.approx([1.0, 4.0, 2.0])
