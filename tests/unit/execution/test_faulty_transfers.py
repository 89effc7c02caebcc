from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from evenflow.core.clock import MonotonicClock, VirtualClock
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.transfers import CpuTransfers
from evenflow.memory.extents import Extent
from evenflow.memory.transfers import Tier, TransferEngine, overlapping
from support.faulty_transfers import STALL_S, Fault, FaultyTransfers, seeded_faults

OUT = (Tier.DEVICE, Tier.HOST)
IN = (Tier.HOST, Tier.DEVICE)


def faulty(*faults: Fault | None) -> tuple[FaultyTransfers, KVStore, KVStore, VirtualClock]:
    device, host = (KVStore(8, 1, 1, 8, 4) for _ in range(2))
    device.data.fill_(1.0)
    host.data.fill_(0.0)
    clock = VirtualClock()
    below = CpuTransfers(device, host, clock=MonotonicClock())
    engine = FaultyTransfers(below, faults, clock=clock, sleep=clock.advance)
    return engine, device, host, clock


def arrived(store: KVStore) -> list[int]:
    return [n for n in range(8) if bool((store.blocks[n] == 1).all())]


def run(start: int, length: int) -> list[tuple[Extent, Extent]]:
    return [(Extent(start, length), Extent(start, length))]


def failures(engine: TransferEngine) -> Sequence[bool]:
    return [outcome.failure is not None for outcome in engine.poll()]


def test_stalled_ticket_takes_50_ms_more() -> None:
    engine, _, host, clock = faulty(Fault.STALL)
    ticket = engine.submit(*OUT, run(0, 2))
    clock.advance(STALL_S / 2)
    assert engine.poll() == []
    assert arrived(host) == []
    assert engine.wait([ticket]) == STALL_S / 2
    assert arrived(host) == [0, 1]
    assert failures(engine) == [False]
    engine.close()


def test_ticket_with_an_error_copies_nothing_and_fails() -> None:
    engine, _, host, _ = faulty(Fault.ERROR)
    engine.wait([engine.submit(*OUT, run(0, 2))])
    assert arrived(host) == []
    assert failures(engine) == [True]
    engine.close()


def test_torn_ticket_copies_half_and_fails() -> None:
    engine, _, host, _ = faulty(Fault.TORN)
    engine.wait([engine.submit(*OUT, run(0, 1) + run(2, 4))])
    assert arrived(host) == [0, 2]
    assert failures(engine) == [True]
    engine.close()


def test_held_ticket_begins_when_it_is_released() -> None:
    engine, _, host, _ = faulty(Fault.HELD)
    held = engine.submit(*OUT, run(0, 2))
    free = engine.submit(*OUT, run(4, 1))
    engine.wait([free])
    assert engine.held == [held]
    assert (arrived(host), failures(engine)) == ([4], [False])
    engine.release([held])
    engine.wait(engine.in_flight)
    assert (arrived(host), failures(engine)) == ([0, 1, 4], [False])
    engine.close()


def test_held_ticket_holds_up_only_what_comes_after_it() -> None:
    engine, device, host, _ = faulty(Fault.HELD)
    held = engine.submit(*OUT, run(0, 1))
    behind = engine.submit(*IN, run(0, 1), after=[held])
    beside = engine.submit(*IN, run(5, 1))
    engine.wait([beside])
    assert list(engine.in_flight) == [held, behind]
    assert arrived(host) == []
    engine.wait([behind])
    assert arrived(host) == [0]
    assert arrived(device) == [0, 1, 2, 3, 4, 6, 7]
    engine.close()


def test_fenced_lists_exactly_what_somebody_waited_for() -> None:
    engine, _, _, _ = faulty(Fault.HELD, Fault.HELD, Fault.HELD)
    tickets = [engine.submit(*OUT, run(n, 2)) for n in (0, 2, 4)]
    engine.fence(overlapping(engine.in_flight, Tier.DEVICE, [Extent(3, 1)]))
    assert engine.fenced == [tickets[1]]
    assert engine.held == [tickets[0], tickets[2]]
    engine.close()


def test_seeded_faults_repeat_and_come_as_often_as_they_should() -> None:
    faults = list(islice(seeded_faults(3, stall=0.1, torn=0.4), 1000))
    assert faults == list(islice(seeded_faults(3, stall=0.1, torn=0.4), 1000))
    assert 70 < faults.count(Fault.STALL) < 130
    assert 350 < faults.count(Fault.TORN) < 450
    assert faults.count(Fault.ERROR) == faults.count(Fault.HELD) == 0


def test_wrapped_engine_moves_the_same_bytes_when_nothing_goes_wrong() -> None:
    engine, device, host, _ = faulty()
    device.data.copy_(torch.randn(device.data.shape))
    engine.wait([engine.submit(*OUT, run(0, 8))])
    assert torch.equal(device.data, host.data)
    assert (engine.num_pieces, engine.bytes_per_block) == (1, KVStore.bytes_per_block(1, 1, 8, 4))
    engine.close()
