"""On which tier content lies, and what is on its way between them.

    device ──store (what is not there yet)──▶ host ──spill──▶ disk
       ▲                                        │               │
       └────────────── load ────────────────────┴───────────────┘

A full block never changes, so a copy is valid as long as it can be found by its hash: nothing has
to be told when a request leaves, returns or goes on (FastSwitch, arXiv 2411.18424, section 3.3,
reuse of host copies, without its bookkeeping per request). A last block that is not full yet is
copied under the hash of the few tokens in it. When the request has gone on, nobody asks for that
hash any more, and the copy is worth nothing.

Knows: tiers below the device; tickets in flight and what hangs on them.
Does not know: requests, except as names of what arrives; who should leave or return, and when.

Invariants:
    Every ticket in flight is a store, a load or a spill, and its blocks on lower tiers are held.
    A copy can be found from the moment it is submitted; a load of it begins after it is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId, RequestId, TenantId
from evenflow.memory.extents import Extent, coalesce, intersect
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.prefix_cache import BlockHash
from evenflow.memory.transfer_stats import TransferStats
from evenflow.memory.transfers import Copy, Outcome, Ticket, Tier, TransferEngine, overlapping
from evenflow.memory.worth import Worth

Place = tuple[LowerTier, BlockId]
"""Where a copy lies."""

_SPILL_BLOCKS = 32
"""Most blocks that go to disk with one ticket: a load never waits for more than that."""

_MAX_SPILLABLE = 4096
"""Copies that are remembered as not being on disk yet; beyond that the oldest stay off it until the
end."""

_MAX_FAREWELL_S = 4.0
"""Longest time for which the end is held up by copies that are not on disk yet."""


@dataclass(slots=True)
class Stored:
    """What a store found to do.

    Attributes:
        num_clean: blocks of which there was a copy already.
        num_written: blocks that are being written.
        num_left_out: blocks for which there was no room.
        ticket: what writes them, if anything does.
        failure: why they were not written after all, once that is known.
    """

    num_clean: int
    num_written: int
    num_left_out: int
    ticket: Ticket | None
    failure: str | None = None


@dataclass(slots=True, eq=False)
class Arrival:
    """Content on its way to the device.

    Attributes:
        num_blocks: blocks that arrive.
        num_tokens_before: tokens before them, whose KV is on the device already.
        tickets: what brings them.
        num_pending: how many of these are not done.
        failure: why what arrived must not be trusted.
    """

    num_blocks: int
    num_tokens_before: int
    tickets: list[Ticket]
    num_pending: int = 0
    failure: str | None = None


@dataclass(slots=True, frozen=True)
class _Write:
    """A store or a spill, and the host blocks that a spill reads."""

    tier: LowerTier
    block_ids: list[BlockId]
    host_ids: list[BlockId] = field(default_factory=list)
    stored: Stored | None = None


@dataclass(slots=True, frozen=True)
class _Load:
    tier: LowerTier
    block_ids: list[BlockId]
    arrival: Arrival


class Residency:
    """The tiers below the device.

    Args:
        transfers: moves blocks.
        host: the tier that is written to.
        disk: where copies go from the host, if anywhere.
        by_group: move runs of blocks as one copy; otherwise block by block, as a baseline.
        keep_copies: whether a copy outlives its return to the device.

    Attributes:
        transfers: moves blocks.
        host: the tier that is written to.
        disk: where copies go from the host, if anywhere.
        arrivals: what is on its way to the device, by name.
        stats: what was moved.
    """

    def __init__(
        self,
        transfers: TransferEngine,
        host: LowerTier,
        disk: LowerTier | None = None,
        *,
        by_group: bool = True,
        keep_copies: bool = True,
    ) -> None:
        self.transfers = transfers
        self.host = host
        self.disk = disk
        self.arrivals: dict[RequestId, Arrival] = {}
        self.stats = TransferStats()
        self._tiers = [host] if disk is None else [host, disk]
        self._by_group = by_group
        self._keep_copies = keep_copies
        self._jobs: dict[Ticket, _Write | _Load] = {}
        # What is being written, and by what.
        self._writer: dict[Place, Ticket] = {}
        self._spillable: deque[BlockHash] = deque(maxlen=_MAX_SPILLABLE)

    @property
    def is_busy(self) -> bool:
        """Whether anything is in flight."""
        return bool(self._jobs)

    @property
    def num_bytes_moved(self) -> int:
        """Bytes that were sent between tiers so far."""
        return sum(self.stats.num_blocks.values()) * self.transfers.bytes_per_block

    def num_clean(self, contents: Iterable[BlockHash]) -> int:
        """Return of how many blocks there is a copy on the host."""
        find = self.host.find
        return sum(find(content) is not None for content in contents)

    def store(
        self,
        contents: Sequence[BlockHash],
        block_ids: Sequence[BlockId],
        tenant_id: TenantId,
        *,
        after: BlockHash | None = None,
        below: Worth | None = None,
    ) -> Stored:
        """Copy device blocks to the host, as far as their content is not there yet.

        What the copies are worth is for the caller to say, by `host.appraise`.

        Args:
            contents: of successive blocks of a chain.
            block_ids: where they lie on the device; they may be given away at once.
            tenant_id: whose they are.
            after: content that comes before them in the chain.
            below: only copies that are worth less than this make room; None for any.
        """
        places = [self.host.find(content) for content in contents]
        clean = [place for place in places if place is not None]
        dirty = [
            (content, block_id)
            for content, block_id, place in zip(contents, block_ids, places, strict=True)
            if place is None
        ]
        # What there is of the chain must not make room for the rest of it.
        self.host.hold(clean)
        first = places.index(None) if dirty else 0
        extents = self.host.reserve(
            [content for content, _ in dirty],
            tenant_id,
            after=contents[first - 1] if first else after,
            below=below,
        )
        self.host.release(clean)
        host_ids = _block_ids(extents)
        written = dirty[: len(host_ids)]
        stored = Stored(len(clean), len(written), len(dirty) - len(written), None)
        if written:
            sources = coalesce(block_id for _, block_id in written)
            ticket = self._submit(Tier.DEVICE, Tier.HOST, sources, extents)
            stored.ticket = ticket
            self._note_write(ticket, _Write(self.host, host_ids, stored=stored))
            if self.disk is not None:
                self._spillable.extend(content for content, _ in written)
        return stored

    def find(self, contents: Iterable[BlockHash]) -> list[Place]:
        """Return where the leading blocks of a chain can be loaded from, up to the first gap."""
        places: list[Place] = []
        for content in contents:
            for tier in self._tiers:
                block_id = tier.find(content)
                if block_id is not None:
                    places.append((tier, block_id))
                    break
            else:
                break
        return places

    def load(
        self,
        places: Sequence[Place],
        block_ids: Sequence[BlockId],
        name: RequestId | None = None,
        num_tokens_before: int = 0,
    ) -> Arrival:
        """Bring copies to the device.

        Args:
            places: as `find` returned them.
            block_ids: blocks on the device that nobody else holds.
            name: under which `poll` reports them; nothing else has it at present.
            num_tokens_before: tokens before them, whose KV is on the device already.

        Returns:
            What is on its way.
        """
        if name in self.arrivals:
            raise IntegrityError(f"{name} is on its way already")
        arrival = Arrival(len(places), num_tokens_before, [])
        in_the_way = self.conflicts(coalesce(block_ids))
        for tier in self._tiers:
            pairs = [(at, to) for (of, at), to in zip(places, block_ids, strict=True) if of is tier]
            if not pairs:
                continue
            held = [at for at, _ in pairs]
            tier.hold(held)
            writers = {self._writer[tier, at]: None for at in held if (tier, at) in self._writer}
            after = [*in_the_way, *writers]
            ticket = self._submit(
                tier.tier, Tier.DEVICE, coalesce(held), coalesce(to for _, to in pairs), after
            )
            self._jobs[ticket] = _Load(tier, held, arrival)
            arrival.tickets.append(ticket)
        arrival.num_pending = len(arrival.tickets)
        if name is not None:
            self.arrivals[name] = arrival
        return arrival

    def conflicts(self, extents: Collection[Extent]) -> list[Ticket]:
        """Return the tickets in flight that read or write any of these device blocks."""
        return overlapping(self.transfers.in_flight, Tier.DEVICE, extents)

    def forget(self, name: RequestId) -> None:
        """Have nobody wait for an arrival any more; its transfers run out by themselves."""
        self.arrivals.pop(name, None)

    def poll(self) -> tuple[list[Outcome], dict[RequestId, Arrival]]:
        """Take in which transfers have ended.

        Returns:
            How they ended, and what has arrived with that.
        """
        if not self._jobs:
            return [], {}
        outcomes = self.transfers.poll()
        for outcome in outcomes:
            self._settle(outcome)
        arrived = {name: a for name, a in self.arrivals.items() if not a.num_pending}
        for name in arrived:
            del self.arrivals[name]
        return outcomes, arrived

    def spill(self) -> None:
        """Begin to copy some host blocks to disk, if the disk is idle and there are any."""
        disk = self.disk
        if disk is None or not self._spillable:
            return
        if any(ticket.destination is Tier.DISK for ticket in self._jobs):
            return
        contents: list[BlockHash] = []
        host_ids: list[BlockId] = []
        while self._spillable and len(contents) < _SPILL_BLOCKS:
            content = self._spillable.popleft()
            host_id = self.host.find(content)
            if host_id is None or disk.find(content) is not None or content in contents:
                continue
            if (self.host, host_id) in self._writer:
                self._spillable.appendleft(content)
                break
            contents.append(content)
            host_ids.append(host_id)
        extents = disk.reserve(contents)
        disk_ids = _block_ids(extents)
        if disk_ids:
            del host_ids[len(disk_ids) :]
            self.host.hold(host_ids)
            ticket = self._submit(Tier.HOST, Tier.DISK, coalesce(host_ids), extents)
            self._note_write(ticket, _Write(disk, disk_ids, host_ids))

    def distrust(self, contents: Iterable[BlockHash]) -> None:
        """Let nobody find these contents any more."""
        for content in contents:
            for tier in self._tiers:
                block_id = tier.find(content)
                if block_id is not None:
                    tier.hold([block_id])
                    tier.abandon([block_id])
                    tier.release([block_id])

    def clear(self) -> None:
        """Forget all copies that are neither read nor written."""
        for tier in self._tiers:
            tier.clear()

    def close(self) -> None:
        """Let what is in flight end and be recorded, then give up threads and files.

        Before that the disk gets what the host has, as far as there is time.
        """
        self._finish()
        self._spill_all()
        self.transfers.close()
        for tier in self._tiers:
            tier.close()

    def check_integrity(self) -> None:
        """Check that tickets, holds and arrivals agree.

        Raises:
            IntegrityError: they do not.
        """
        for tier in self._tiers:
            tier.check_integrity()
        if not set(self.transfers.in_flight) <= self._jobs.keys():
            raise IntegrityError("a ticket is in flight that nobody asked for")
        writes = [job for job in self._jobs.values() if isinstance(job, _Write)]
        if {(job.tier, at) for job in writes for at in job.block_ids} != self._writer.keys():
            raise IntegrityError("the blocks that are written are not those of stores and spills")
        for name, arrival in self.arrivals.items():
            pending = [ticket for ticket in arrival.tickets if ticket in self._jobs]
            if len(pending) != arrival.num_pending:
                raise IntegrityError(f"{name} waits for {arrival.num_pending}, not {len(pending)}")

    def _finish(self) -> float:
        """Wait until nothing is in flight; return how many seconds that took."""
        waited_s = self.transfers.wait(list(self.transfers.in_flight))
        self.poll()
        return waited_s

    def _spill_all(self) -> None:
        """Copy to disk what is worth most on the host, without giving up any of it there."""
        disk = self.disk
        if disk is None:
            return
        contents = self.host.best(disk.num_blocks)
        places = [(content, disk.find(content)) for content in contents]
        held = [block_id for _, block_id in places if block_id is not None]
        disk.hold(held)
        self._spillable = deque(content for content, block_id in places if block_id is None)
        left_s = _MAX_FAREWELL_S
        while self._spillable and left_s > 0:
            self.spill()
            left_s -= self._finish()
        disk.release(held)

    def _submit(
        self,
        source: Tier,
        destination: Tier,
        sources: Sequence[Extent],
        destinations: Sequence[Extent],
        after: Collection[Ticket] = (),
    ) -> Ticket:
        copies: list[Copy] = intersect(sources, destinations)
        if not self._by_group:
            copies = [pair for copy in copies for pair in _single_blocks(copy)]
        ticket = self.transfers.submit(source, destination, copies, after=after)
        self.stats.note_submitted(ticket)
        return ticket

    def _note_write(self, ticket: Ticket, job: _Write) -> None:
        self._jobs[ticket] = job
        self._writer.update(((job.tier, at), ticket) for at in job.block_ids)

    def _settle(self, outcome: Outcome) -> None:
        job = self._jobs.pop(outcome.ticket)
        self.stats.note_ended(outcome)
        if isinstance(job, _Load):
            job.arrival.num_pending -= 1
            if outcome.failure is not None:
                job.arrival.failure = outcome.failure
            if outcome.failure is not None or not self._keep_copies:
                job.tier.abandon(job.block_ids)
            job.tier.release(job.block_ids)
            return
        for block_id in job.block_ids:
            del self._writer[job.tier, block_id]
        self.host.release(job.host_ids)
        if outcome.failure is not None:
            job.tier.abandon(job.block_ids)
            self._spoil(job, outcome.failure)
            if job.stored is not None:
                job.stored.failure = outcome.failure
        job.tier.keep(job.block_ids)

    def _spoil(self, write: _Write, failure: str) -> None:
        """A write has failed: so does every load that reads what it should have written."""
        written = set(write.block_ids)
        for job in self._jobs.values():
            if isinstance(job, _Load) and job.tier is write.tier and written & set(job.block_ids):
                job.arrival.failure = failure


def _block_ids(extents: Iterable[Extent]) -> list[BlockId]:
    return [block_id for extent in extents for block_id in extent.block_ids]


def _single_blocks(copy: Copy) -> list[Copy]:
    source, destination = copy
    return [
        (Extent(source.start + at, 1), Extent(destination.start + at, 1))
        for at in range(source.length)
    ]
