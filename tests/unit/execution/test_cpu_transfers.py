from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from evenflow.core.clock import MonotonicClock
from evenflow.core.errors import IntegrityError
from evenflow.execution.torch.kv_store import KVLayout, KVStore
from evenflow.execution.torch.transfers import CpuTransfers
from evenflow.memory.extents import Extent
from evenflow.memory.transfers import Copy, Outcome, Ticket, Tier, TransferEngine
from support.faulty_transfers import DictBlocks

OUT = (Tier.DEVICE, Tier.HOST)
IN = (Tier.HOST, Tier.DEVICE)
SPILL = (Tier.HOST, Tier.DISK)
FETCH = (Tier.DISK, Tier.DEVICE)
LAYOUTS: list[KVLayout] = ["block_first", "layer_first"]


class GatedBlocks(DictBlocks):
    """A disk that says when it is asked for something, and does it when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may_go_on = threading.Event(), threading.Event()

    def write(self, slot: int, data: memoryview) -> None:
        self.asked.set()
        self.may_go_on.wait()
        super().write(slot, data)


class Rig:
    """Stores of 8 blocks on device and host, filled with 0, 1, 2, ... and -1."""

    def __init__(self, layout: KVLayout = "block_first", disk: DictBlocks | None = None) -> None:
        shape = (3, 2, 8, 4)  # layers, heads, dimensions, tokens
        self.device, self.host = KVStore(8, *shape, layout), KVStore(8, *shape, layout)
        numbers = torch.arange(self.device.data.numel(), dtype=torch.float32)
        self.device.blocks.copy_(numbers.view(self.device.blocks.shape))
        self.host.data.fill_(-1.0)
        self.disk = disk or DictBlocks()
        self.engine = CpuTransfers(self.device, self.host, self.disk, clock=MonotonicClock())

    def polled(self, number: int) -> list[Outcome]:
        """Return outcomes as the worker brings them about, until there are so many."""
        outcomes: list[Outcome] = []
        while len(outcomes) < number:
            outcomes += self.engine.poll()
            time.sleep(0.001)
        return outcomes


@pytest.fixture(params=LAYOUTS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(request.param)
    yield rig
    rig.engine.close()


def blocks(start: int, length: int, to: int) -> Copy:
    return Extent(start, length), Extent(to, length)


def test_transfer_moves_exactly_its_blocks_when_polled_for(rig: Rig) -> None:
    ticket = rig.engine.submit(*OUT, [blocks(1, 3, to=4), blocks(7, 1, to=0)])
    [outcome] = rig.polled(1)
    assert outcome.ticket is ticket
    assert outcome.failure is None
    assert outcome.seconds > 0
    assert torch.equal(rig.host.blocks[4:7], rig.device.blocks[1:4])
    assert torch.equal(rig.host.blocks[0], rig.device.blocks[7])
    assert (rig.host.blocks[[1, 2, 3, 7]] == -1).all()


def test_transfer_brings_blocks_back_from_host_and_disk(rig: Rig) -> None:
    before = rig.device.blocks.clone()
    out = rig.engine.submit(*OUT, [blocks(0, 4, to=2)])
    spill = rig.engine.submit(*SPILL, [blocks(2, 4, to=9)], after=[out])
    rig.engine.wait([spill])
    rig.device.data.fill_(-2.0)
    rig.engine.submit(*IN, [blocks(2, 2, to=0)])
    rig.engine.submit(*FETCH, [blocks(11, 2, to=2)])
    assert [outcome.failure for outcome in rig.polled(4)] == [None] * 4
    assert torch.equal(rig.device.blocks[:4], before[:4])
    assert (rig.device.blocks[4:] == -2).all()


def test_disk_holds_blocks_in_block_first_order_whatever_the_layout(rig: Rig) -> None:
    rig.engine.wait([rig.engine.submit(Tier.DEVICE, Tier.DISK, [blocks(3, 2, to=0)])])
    for slot, block_id in ((0, 3), (1, 4)):
        assert rig.disk.slots[slot] == rig.device.blocks[block_id].contiguous().numpy().tobytes()


def test_engine_counts_the_pieces_and_bytes_of_a_block() -> None:
    for layout, num_pieces in (("block_first", 1), ("layer_first", 6)):
        engine: TransferEngine = Rig(layout).engine
        assert engine.num_pieces == num_pieces
        assert engine.bytes_per_block == KVStore.bytes_per_block(3, 2, 8, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_narrow_blocks_survive_a_round_trip_over_the_disk(dtype: torch.dtype) -> None:
    stores = [KVStore(2, 1, 1, 8, 4, "layer_first", dtype) for _ in range(2)]
    stores[0].data.copy_(100 * torch.randn(stores[0].data.shape))
    engine = CpuTransfers(*stores, DictBlocks(), clock=MonotonicClock())
    engine.wait([engine.submit(Tier.DEVICE, Tier.DISK, [blocks(0, 2, to=0)])])
    engine.wait([engine.submit(Tier.DISK, Tier.HOST, [blocks(0, 2, to=0)])])
    assert torch.equal(stores[0].data, stores[1].data)
    engine.close()


def test_poll_reports_each_ticket_once_in_order_of_completion(rig: Rig) -> None:
    tickets = [rig.engine.submit(*OUT, [blocks(n, 1, to=n)]) for n in range(8)]
    assert [outcome.ticket for outcome in rig.polled(8)] == tickets
    assert rig.engine.poll() == []
    assert list(rig.engine.in_flight) == []


def test_wait_leaves_its_tickets_to_be_polled(rig: Rig) -> None:
    first = rig.engine.submit(*OUT, [blocks(0, 1, to=0)])
    rig.engine.wait([first])
    assert first not in rig.engine.in_flight
    assert [outcome.ticket for outcome in rig.engine.poll()] == [first]
    assert rig.engine.wait([first]) == 0.0


def test_fence_returns_when_its_tickets_are_done(rig: Rig) -> None:
    rig.engine.fence([rig.engine.submit(*OUT, [blocks(0, 8, to=0)])])
    assert torch.equal(rig.host.blocks, rig.device.blocks)


def test_wait_copies_by_itself_what_the_thread_has_not_begun() -> None:
    disk = GatedBlocks()
    rig = Rig(disk=disk)
    spill = rig.engine.submit(*SPILL, [blocks(0, 1, to=0)])
    disk.asked.wait()  # from here on the thread is busy
    first = rig.engine.submit(*OUT, [blocks(1, 1, to=1)])
    second = rig.engine.submit(*OUT, [blocks(2, 1, to=2)])
    third = rig.engine.submit(*OUT, [blocks(3, 1, to=3)])
    rig.engine.wait([second])
    assert torch.equal(rig.host.blocks[2], rig.device.blocks[2])
    # One link, one order: the one before it began first, the one behind it has not begun.
    assert list(rig.engine.in_flight) == [spill, third]
    assert [outcome.ticket for outcome in rig.engine.poll()] == [first, second]
    assert (rig.host.blocks[3] == -1).all()
    disk.may_go_on.set()
    rig.engine.close()


def test_wait_copies_by_itself_what_its_tickets_come_after() -> None:
    disk = GatedBlocks()
    rig = Rig(disk=disk)
    rig.engine.submit(*SPILL, [blocks(0, 1, to=0)])
    disk.asked.wait()
    out = rig.engine.submit(*OUT, [blocks(1, 1, to=1)])
    back = rig.engine.submit(*IN, [blocks(1, 1, to=2)], after=[out])
    rig.engine.wait([back])
    assert torch.equal(rig.device.blocks[2], rig.device.blocks[1])
    disk.may_go_on.set()
    rig.engine.close()


def test_wait_joins_the_thread_when_it_has_begun() -> None:
    disk = GatedBlocks()
    rig = Rig(disk=disk)
    ticket = rig.engine.submit(*SPILL, [blocks(0, 1, to=5)])
    disk.asked.wait()
    assert disk.slots == {}
    threading.Timer(0.02, disk.may_go_on.set).start()
    rig.engine.wait([ticket])
    assert set(disk.slots) == {5}
    rig.engine.close()


def test_ticket_begins_after_those_it_comes_after_when_waited_for() -> None:
    disk = GatedBlocks()
    rig = Rig(disk=disk)
    rig.host.data.fill_(7.0)
    spill = rig.engine.submit(*SPILL, [blocks(0, 1, to=0)])
    disk.asked.wait()
    # Overwrites what the spill reads, so it may not begin while that is going on.
    overwrite = rig.engine.submit(*OUT, [blocks(1, 1, to=0)], after=[spill])
    load = rig.engine.submit(*IN, [blocks(0, 1, to=5)], after=[overwrite])
    threading.Timer(0.02, disk.may_go_on.set).start()
    rig.engine.wait([load])
    assert [outcome.ticket for outcome in rig.engine.poll()] == [spill, overwrite, load]
    assert torch.equal(rig.device.blocks[5], rig.device.blocks[1])
    rig.engine.close()


def test_thread_lets_everything_else_go_before_what_leads_to_disk() -> None:
    disk = GatedBlocks()
    rig = Rig(disk=disk)
    busy = rig.engine.submit(*SPILL, [blocks(0, 1, to=0)])
    disk.asked.wait()
    spills = [rig.engine.submit(*SPILL, [blocks(n, 1, to=n)]) for n in (1, 2)]
    behind = rig.engine.submit(*IN, [blocks(1, 1, to=0)], after=spills[:1])
    out = rig.engine.submit(*OUT, [blocks(4, 1, to=4)])
    disk.may_go_on.set()
    assert [o.ticket for o in rig.polled(5)] == [busy, out, spills[0], behind, spills[1]]
    rig.engine.close()


def test_failing_disk_makes_an_outcome_and_the_thread_lives_on(rig: Rig) -> None:
    rig.disk.broken = {1}
    rig.engine.submit(*SPILL, [blocks(0, 2, to=0)])
    [failed] = rig.polled(1)
    assert failed.failure is not None
    assert "from host to disk: [Errno 28] No space left on device" in failed.failure
    rig.engine.submit(*FETCH, [blocks(6, 1, to=0)])
    [failed] = rig.polled(1)
    assert failed.failure is not None
    assert "from disk to device: the checksum of slot 6 is wrong" in failed.failure
    rig.engine.submit(*SPILL, [blocks(3, 1, to=3)])
    assert [outcome.failure for outcome in rig.polled(1)] == [None]


def test_bug_in_a_copy_makes_an_outcome_and_the_thread_lives_on(rig: Rig) -> None:
    rig.disk.slots[0] = b"too short"  # such a file would be a bug, and this a ValueError
    rig.disk.read = lambda slot, into: [][slot]  # type: ignore[method-assign]
    rig.engine.submit(*FETCH, [blocks(0, 1, to=0)])
    [failed] = rig.polled(1)
    assert failed.failure is not None
    assert "IndexError" in failed.failure
    rig.engine.submit(*OUT, [blocks(0, 1, to=0)])
    assert [outcome.failure for outcome in rig.polled(1)] == [None]


def test_ticket_fails_when_what_it_reads_was_never_written() -> None:
    disk = GatedBlocks()
    rig = Rig(disk=disk)
    busy = rig.engine.submit(*SPILL, [blocks(7, 1, to=7)])
    disk.asked.wait()
    torn = rig.engine.submit(*FETCH, [blocks(0, 1, to=3)])  # an empty slot
    reads = rig.engine.submit(*OUT, [blocks(3, 1, to=3)], after=[torn])
    reads_on = rig.engine.submit(*IN, [blocks(3, 1, to=4)], after=[reads])
    beside = rig.engine.submit(*OUT, [blocks(2, 1, to=2)], after=[torn])
    disk.may_go_on.set()
    rig.engine.wait(rig.engine.in_flight)
    failures = {outcome.ticket: outcome.failure for outcome in rig.engine.poll()}
    assert failures[busy] is failures[beside] is None
    assert "slot 0 is wrong" in (failures[reads_on] or "")
    assert (rig.host.blocks[3] == -1).all()
    rig.engine.close()


def test_ticket_that_failed_and_was_not_reported_spoils_what_is_submitted_later(rig: Rig) -> None:
    failed = rig.engine.submit(*FETCH, [blocks(0, 1, to=3)])
    rig.engine.wait([failed])
    rig.engine.submit(*OUT, [blocks(3, 1, to=3)], after=[failed])
    assert all(outcome.failure for outcome in rig.polled(2))


@pytest.mark.parametrize(
    ("link", "copy"),
    [
        (OUT, (Extent(0, 2), Extent(0, 1))),
        (OUT, (Extent(7, 2), Extent(0, 2))),
        (IN, (Extent(0, 1), Extent(8, 1))),
        (OUT, (Extent(-1, 1), Extent(0, 1))),
        ((Tier.HOST, Tier.HOST), (Extent(0, 1), Extent(1, 1))),
    ],
)
def test_submit_refuses_what_would_touch_other_memory(
    rig: Rig, link: tuple[Tier, Tier], copy: Copy
) -> None:
    with pytest.raises(IntegrityError):
        rig.engine.submit(*link, [copy])
    assert list(rig.engine.in_flight) == []


def test_submit_refuses_a_disk_that_is_not_there() -> None:
    stores = [KVStore(2, 1, 1, 8, 4) for _ in range(2)]
    with pytest.raises(IntegrityError, match="no link from host to disk"):
        CpuTransfers(*stores, clock=MonotonicClock()).submit(*SPILL, [blocks(0, 1, to=0)])


def test_engine_refuses_stores_that_are_laid_out_differently() -> None:
    for other in (KVStore(2, 1, 1, 8, 4, "layer_first"), KVStore(2, 2, 1, 8, 4)):
        with pytest.raises(IntegrityError):
            CpuTransfers(KVStore(2, 1, 1, 8, 4), other, clock=MonotonicClock())


def test_thread_lives_from_the_first_ticket_until_close() -> None:
    before = set(threading.enumerate())
    rig = Rig()
    assert set(threading.enumerate()) == before
    tickets = [rig.engine.submit(*OUT, [blocks(n, 1, to=n)]) for n in range(8)]
    assert len(set(threading.enumerate()) - before) == 1
    rig.engine.close()
    assert not set(threading.enumerate()) - before
    assert {outcome.ticket for outcome in rig.engine.poll()} == set(tickets)
    rig.engine.close()
    with pytest.raises(IntegrityError, match="closed"):
        rig.engine.submit(*OUT, [blocks(0, 1, to=0)])
    assert list(rig.engine.in_flight) == []


def test_interrupted_wait_leaves_nothing_that_close_would_wait_for() -> None:
    disk = GatedBlocks()
    rig = Rig(disk=disk)
    rig.engine.submit(*SPILL, [blocks(0, 1, to=0)])
    disk.asked.wait()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    rig.engine._copy = interrupt  # type: ignore[method-assign]
    tickets = [rig.engine.submit(*OUT, [blocks(n, 1, to=n)]) for n in (1, 2)]
    with pytest.raises(KeyboardInterrupt):
        rig.engine.wait(tickets)
    disk.may_go_on.set()
    rig.engine.close()
    failures = {outcome.ticket: outcome.failure for outcome in rig.engine.poll()}
    assert [failures[ticket] for ticket in tickets] == ["the copy was interrupted"] * 2


def test_done_tickets_do_not_keep_their_past_alive(rig: Rig) -> None:
    ticket: Ticket | None = None
    for n in range(8):
        ticket = rig.engine.submit(*OUT, [blocks(n, 1, to=n)], after=[ticket] if ticket else [])
    rig.engine.wait([ticket] if ticket else [])
    assert all(job.after == () for job in rig.engine._unreported.values())
