"""Moves blocks between a device, its host's memory and a disk.

Knows: where the bytes of a block lie on each tier, and what copies them.
Does not know: what lies in a block, whether it is still wanted, or when a copy is worth its time.

Invariants:
    A copy of a run of blocks is as many calls as the run has ranges of memory: one block-first,
    2 * num_layers layer-first.
    On disk a block is laid out as in a block-first store, whatever the layout elsewhere.
"""

from __future__ import annotations

import ctypes
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Protocol

import torch

from evenflow.core.clock import Clock
from evenflow.core.errors import IntegrityError
from evenflow.execution.torch.copy_worker import CopyWorker, Job
from evenflow.execution.torch.kv_store import KVStore
from evenflow.memory.extents import Extent
from evenflow.memory.transfers import Copy, Outcome, Ticket, Tier

_BOUNCE = Extent(0, 1)
"""The only block of a bounce buffer."""


class BlockFile(Protocol):
    """Blocks on disk, each in a slot. It is used by one thread at a time."""

    def write(self, slot: int, data: memoryview) -> None:
        """Write a block; OSError or ValueError if that fails."""
        ...

    def read(self, slot: int, into: memoryview) -> None:
        """Read a block; OSError or ValueError if what was written there cannot be had."""
        ...


class WorkerTransfers(ABC):
    """A transfer engine whose copies run in a thread beside the steps.

    Its methods are for one thread, the engine's.

    Args:
        device: blocks that are computed on.
        host: blocks in the host's memory, laid out alike.
        disk: blocks on disk, if there are any.
        clock: times the copies.
        bounce: a store of one block that lies in the host's memory, on the way to and from disk.
    """

    def __init__(
        self, device: KVStore, host: KVStore, disk: BlockFile | None, clock: Clock, bounce: KVStore
    ) -> None:
        if device.blocks.shape[1:] != host.blocks.shape[1:] or device.layout != host.layout:
            raise IntegrityError("blocks of device and host are not laid out alike")
        self._stores = {Tier.DEVICE: device, Tier.HOST: host}
        self._disk = disk
        # One block, both layouts: its pieces lie one behind the other, as on disk.
        self._bounce = bounce
        self._bounce_bytes = bounce.data.view(torch.uint8).flatten().numpy().data
        self._disk_lock = threading.Lock()
        self._clock = clock
        self._worker = CopyWorker(self._move, clock)
        self._in_flight: dict[Ticket, Job] = {}
        self._unreported: dict[Ticket, Job] = {}

    @property
    def bytes_per_block(self) -> int:
        """Bytes of a block over all layers."""
        return len(self._bounce_bytes)

    @property
    def num_pieces(self) -> int:
        """Copies that a run of blocks takes: 1 block-first, 2 * num_layers layer-first."""
        return self._bounce.num_pieces

    @property
    def in_flight(self) -> Collection[Ticket]:
        """The tickets that are not known to be done, in order of submission."""
        return self._in_flight.keys()

    def submit(
        self,
        source: Tier,
        destination: Tier,
        copies: Sequence[Copy],
        *,
        after: Collection[Ticket] = (),
    ) -> Ticket:
        """Start some copies and return at once.

        A ticket that reads what a ticket of `after` failed to write fails as well.

        Args:
            source: tier to read.
            destination: tier to write.
            copies: what goes where; no block is written twice.
            after: tickets that must be done before the first copy begins.

        Raises:
            IntegrityError: there is no such link or block, a copy's sides are not equally long, or
                the engine is closed.
        """
        ticket = Ticket(source, destination, tuple(copies))
        self._check(ticket)
        job = Job(ticket, tuple(self._known(after)))
        self._in_flight[ticket] = job
        self._start(job)
        return ticket

    def poll(self) -> list[Outcome]:
        """Return how tickets ended that were not returned before, in order of completion."""
        if self._in_flight:
            self._settle()
        if not self._unreported:
            return []
        outcomes = [job.outcome() for job in self._unreported.values()]
        self._unreported.clear()
        return outcomes

    def wait(self, tickets: Collection[Ticket]) -> float:
        """Return when all `tickets` are done, and how many seconds that took.

        Copies that have not begun are done here and now, in the caller's thread.
        """
        jobs = [self._in_flight[ticket] for ticket in tickets if ticket in self._in_flight]
        if not jobs:
            return 0.0
        began_s = self._clock.now_s()
        self._finish(jobs)
        self._settle()
        return self._clock.now_s() - began_s

    def fence(self, tickets: Collection[Ticket]) -> float:
        """Wait for `tickets`: who computes is who would read too early."""
        return self.wait(tickets)

    def close(self) -> None:
        """Let what is in flight end, then end the thread."""
        self.wait(self._in_flight)
        self._worker.close()

    def _check(self, ticket: Ticket) -> None:
        if self._worker.is_closed:
            raise IntegrityError("blocks are to be moved by an engine that was closed")
        tiers = {*self._stores} if self._disk is None else {*self._stores, Tier.DISK}
        if ticket.source is ticket.destination or not {ticket.source, ticket.destination} <= tiers:
            raise IntegrityError(
                f"there is no link from {ticket.source.value} to {ticket.destination.value}"
            )
        for source, destination in ticket.copies:
            if source.length != destination.length:
                raise IntegrityError(f"cannot copy {source} to {destination}")
            for tier, run in ((ticket.source, source), (ticket.destination, destination)):
                if run.start < 0 or (
                    tier in self._stores and run.stop > self._stores[tier].num_blocks
                ):
                    raise IntegrityError(f"there is no {run} on {tier.value}")

    def _known(self, tickets: Collection[Ticket]) -> list[Job]:
        """Return the jobs of the tickets whose outcomes have not been returned."""
        books = (self._in_flight, self._unreported)
        return [book[ticket] for ticket in tickets for book in books if ticket in book]

    def _start(self, job: Job) -> None:
        """Set a job going."""
        self._worker.put(job)

    def _finish(self, jobs: Sequence[Job]) -> None:
        """Return when some jobs are done."""
        self._worker.finish(jobs)

    def _settle(self) -> None:
        """Take note of what is done."""
        for job in self._worker.ended():
            self._note(job)

    def _note(self, job: Job) -> None:
        del self._in_flight[job.ticket]
        self._unreported[job.ticket] = job

    def _move(self, job: Job) -> None:
        """Do the copies of a job, in whatever thread."""
        ticket = job.ticket
        for source, destination in ticket.copies:
            if ticket.destination is Tier.DISK:
                self._to_disk(self._stores[ticket.source], source, destination)
            elif ticket.source is Tier.DISK:
                self._from_disk(source, self._stores[ticket.destination], destination)
            else:
                self._copy(
                    self._stores[ticket.source],
                    source,
                    self._stores[ticket.destination],
                    destination,
                )

    def _to_disk(self, store: KVStore, run: Extent, slots: Extent) -> None:
        assert self._disk is not None
        for block_id, slot in zip(run.block_ids, slots.block_ids, strict=True):
            with self._disk_lock:
                self._copy(store, Extent(block_id, 1), self._bounce, _BOUNCE)
                self._disk.write(slot, self._bounce_bytes)

    def _from_disk(self, slots: Extent, store: KVStore, run: Extent) -> None:
        assert self._disk is not None
        for slot, block_id in zip(slots.block_ids, run.block_ids, strict=True):
            with self._disk_lock:
                self._disk.read(slot, self._bounce_bytes)
                self._copy(self._bounce, _BOUNCE, store, Extent(block_id, 1))

    @abstractmethod
    def _copy(
        self, source: KVStore, source_run: Extent, destination: KVStore, destination_run: Extent
    ) -> None:
        """Copy a run of blocks and return when it is done."""


class CpuTransfers(WorkerTransfers):
    """Moves blocks when the device is the CPU.

    Args:
        device: blocks that are computed on.
        host: blocks beside them in memory, laid out alike.
        disk: blocks on disk, if there are any.
        clock: times the copies.
    """

    def __init__(
        self, device: KVStore, host: KVStore, disk: BlockFile | None = None, *, clock: Clock
    ) -> None:
        super().__init__(device, host, disk, clock, bounce_buffer(device))

    def _copy(
        self, source: KVStore, source_run: Extent, destination: KVStore, destination_run: Extent
    ) -> None:
        copy_in_memory(source, source_run, destination, destination_run)


def bounce_buffer(store: KVStore, *, pinned: bool = False) -> KVStore:
    """Return a store of one block in the host's memory, laid out as in `store`."""
    return KVStore(
        1,
        store.num_layers,
        store.num_kv_heads,
        store.head_dim,
        store.block_size,
        store.layout,
        store.data.dtype,
        pinned=pinned,
    )


def copy_in_memory(
    source: KVStore, source_run: Extent, destination: KVStore, destination_run: Extent
) -> None:
    """Copy a run of blocks between stores in the host's memory.

    Torch would copy with a pool of threads, one for every thread that it is called from. This is
    the caller's thread alone, and it lets go of the interpreter meanwhile.
    """
    num_bytes = source_run.length * source.piece_bytes
    targets = destination.addresses(destination_run.start)
    for target, origin in zip(targets, source.addresses(source_run.start), strict=True):
        ctypes.memmove(target, origin, num_bytes)
