"""A transfer engine beside an oracle that moves numbers in a dict, at once.

Who wants a range submits after the tickets that overlap it, or fences them, and nothing more. All
legal orders then end in the same bytes, so the oracle may move its numbers at submission.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

from evenflow.core.clock import MonotonicClock
from evenflow.execution.torch.kv_store import KVLayout, KVStore
from evenflow.execution.torch.transfers import CpuTransfers
from evenflow.memory.extents import Extent, coalesce, intersect
from evenflow.memory.transfers import Ticket, Tier, TransferEngine, overlapping
from support.faulty_transfers import DictBlocks, Fault, FaultyTransfers

NUM_BLOCKS = {Tier.DEVICE: 8, Tier.HOST: 6, Tier.DISK: 5}
LINKS = [
    (Tier.DEVICE, Tier.HOST),
    (Tier.HOST, Tier.DEVICE),
    (Tier.HOST, Tier.DISK),
    (Tier.DISK, Tier.DEVICE),
]
BROKEN_SLOT = 4
SHAPE = (2, 1, 64, 16)  # layers, heads, dimensions, tokens: 16 KiB a block


@dataclass(frozen=True)
class Move:
    link: tuple[Tier, Tier]
    sources: list[int]
    destinations: list[int]


@dataclass(frozen=True)
class Compute:
    """Write device blocks, as a step does."""

    block_ids: list[int]


@dataclass(frozen=True)
class Wait:
    """Wait for the tickets at these places among those in flight."""

    places: frozenset[int]


@dataclass(frozen=True)
class Poll:
    """Ask what is done."""


Action = Move | Compute | Wait | Poll


@st.composite
def moves(draw: st.DrawFn) -> Move:
    link = draw(st.sampled_from(LINKS))
    length = draw(st.integers(1, 4))
    sides = []
    for tier in link:
        # Runs, but not only: a rotated range, of which some blocks are taken.
        shift = draw(st.integers(0, NUM_BLOCKS[tier] - 1))
        gap = draw(st.integers(0, 1))
        rotated = [(shift + n) % NUM_BLOCKS[tier] for n in range(NUM_BLOCKS[tier])]
        sides.append((rotated[: length // 2] + rotated[length // 2 + gap :])[:length])
    return Move(link, *sides)


actions: st.SearchStrategy[Action] = st.one_of(
    moves(),
    moves(),
    moves(),
    st.builds(Compute, st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True)),
    st.builds(Wait, st.frozensets(st.integers(0, 4), max_size=3)),
    st.builds(Poll),
)
some_faults = st.sampled_from([None, None, None, Fault.ERROR, Fault.TORN, Fault.HELD])


def contents(number: int) -> torch.Tensor:
    """Return what a block holds that was written as the `number`-th; no two values are the same."""
    num_layers, num_heads, head_dim, block_size = SHAPE
    shape = (num_layers, 2, num_heads, block_size, head_dim)
    size = torch.Size(shape).numel()
    return torch.arange(number * size, (number + 1) * size, dtype=torch.float32).view(shape)


class SlowBlocks(DictBlocks):
    """A disk that takes its time, so that everything else gets its chance to overtake it."""

    def write(self, slot: int, data: memoryview) -> None:
        time.sleep(0.0005)
        super().write(slot, data)

    def read(self, slot: int, into: memoryview) -> None:
        time.sleep(0.0005)
        super().read(slot, into)


def on_cpu(device: KVStore, host: KVStore, disk: DictBlocks) -> TransferEngine:
    return CpuTransfers(device, host, disk, clock=MonotonicClock())


def at_once(step: Callable[[], None]) -> None:
    step()


@dataclass
class World:
    """An engine, and which numbered contents should be where.

    Attributes:
        layout: of the stores.
        faults: what goes wrong with each ticket; None if nothing is between it and the engine.
        make_engine: makes the engine.
        step: has something done on the device, in order with everything that is computed there.
        expected: number of what each block should hold; None where that is uncertain.
        fails: whether each ticket should fail.
        reported: the tickets whose outcomes were polled.
        num_written: contents that were made up.
    """

    layout: KVLayout = "block_first"
    faults: list[Fault | None] | None = None
    make_engine: Callable[[KVStore, KVStore, DictBlocks], TransferEngine] = on_cpu
    step: Callable[[Callable[[], None]], None] = at_once
    expected: dict[tuple[Tier, int], int | None] = field(default_factory=dict)
    fails: dict[Ticket, bool] = field(default_factory=dict)
    reported: list[Ticket] = field(default_factory=list)
    num_written: int = 0

    def __post_init__(self) -> None:
        self.stores = {
            tier: KVStore(NUM_BLOCKS[tier], *SHAPE, self.layout)
            for tier in (Tier.DEVICE, Tier.HOST)
        }
        self.disk = SlowBlocks()
        self.engine = self.make_engine(*self.stores.values(), self.disk)
        if self.faults is not None:
            self.engine = FaultyTransfers(self.engine, self.faults)
        for tier, num_blocks in NUM_BLOCKS.items():
            for block_id in range(num_blocks):
                self.write(tier, block_id)()
        self.disk.broken = {BROKEN_SLOT}

    def write(self, tier: Tier, block_id: int) -> Callable[[], None]:
        """Return what writes new contents into a block, which are expected from now on."""
        block = contents(self.num_written)
        self.expected[tier, block_id] = self.num_written
        self.num_written += 1
        if tier is Tier.DISK:
            return lambda: self.disk.write(block_id, memoryview(block.numpy().tobytes()))
        return lambda: self.stores[tier].blocks[block_id].copy_(block)

    def do(self, action: Action) -> None:
        match action:
            case Move():
                self.move(action)
            case Compute(block_ids):
                extents = coalesce(block_ids)
                self.engine.fence(overlapping(self.engine.in_flight, Tier.DEVICE, extents))
                for block_id in block_ids:
                    self.step(self.write(Tier.DEVICE, block_id))
            case Wait(places):
                tickets = [t for n, t in enumerate(self.engine.in_flight) if n in places]
                self.engine.wait(tickets)
                assert not set(tickets) & set(self.engine.in_flight)
            case Poll():
                self.poll()

    def move(self, move: Move) -> None:
        source, destination = move.link
        sources, destinations = coalesce(move.sources), coalesce(move.destinations)
        in_flight = self.engine.in_flight
        after = {
            *overlapping(in_flight, source, sources),
            *overlapping(in_flight, destination, destinations),
        }
        fault = None
        if self.faults is not None and len(self.fails) < len(self.faults):
            fault = self.faults[len(self.fails)]
        copies = intersect(sources, destinations)
        ticket = self.engine.submit(source, destination, copies, after=after)
        self.fails[ticket] = (
            fault in (Fault.ERROR, Fault.TORN)
            or (source is Tier.DISK and BROKEN_SLOT in move.sources)
            or (destination is Tier.DISK and BROKEN_SLOT in move.destinations)
            or any(self.fails[earlier] and writes(earlier, source, sources) for earlier in after)
        )
        pairs = zip(move.sources, move.destinations, strict=True)
        self.expected |= {
            (destination, to): None if self.fails[ticket] else self.expected[source, origin]
            for origin, to in pairs
        }

    def poll(self) -> None:
        for outcome in self.engine.poll():
            assert (outcome.failure is not None) == self.fails[outcome.ticket], outcome.failure
            assert outcome.ticket not in self.engine.in_flight
            self.reported.append(outcome.ticket)

    def end(self, synchronize: Callable[[], None] = lambda: None) -> None:
        """Close the engine, let the device come to rest, and compare everything."""
        self.engine.close()
        synchronize()
        self.poll()
        assert len(self.reported) == len(self.fails)
        assert set(self.reported) == set(self.fails)
        for (tier, block_id), number in self.expected.items():
            if number is None:
                continue
            if tier is Tier.DISK:
                assert self.disk.slots[block_id] == contents(number).numpy().tobytes()
            else:
                assert torch.equal(self.stores[tier].blocks[block_id], contents(number))


def writes(ticket: Ticket, tier: Tier, extents: list[Extent]) -> bool:
    return ticket.destination is tier and any(
        destination.overlaps(extent) for _, destination in ticket.copies for extent in extents
    )
