"""Moves blocks between a CUDA device, pinned memory of its host, and a disk.

    compute stream   ── step ──┬── step ─────────────────────┬── step
                               │ recorded by submit          │ fence
    copy stream                └▶ began ── copies ── ended ──┘

What reads or writes the device waits for the step that was started last; the host waits for
nothing. Each direction has a stream. What reads or writes the disk is run by the thread that
`WorkerTransfers` has.

Knows: streams and events.
Does not know: what lies in a block, whether it is still wanted, or when a copy is worth its time.

Invariants:
    A ticket in flight is deferred, enqueued on a stream, or with the thread.
    Streams wait for streams, and the thread for its own jobs. Only a ticket of one kind that comes
    after one of the other is deferred, until `poll` or `wait` finds the other one done.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from evenflow.core.clock import Clock
from evenflow.execution.torch.copy_worker import Job, prerequisites
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.transfers import (
    BlockFile,
    WorkerTransfers,
    bounce_buffer,
    copy_in_memory,
)
from evenflow.memory.extents import Extent
from evenflow.memory.transfers import Ticket, Tier


@dataclass(slots=True, frozen=True)
class _Span:
    """When a job's copies began and ended, on their stream."""

    began: torch.cuda.Event
    ended: torch.cuda.Event


class CudaTransfers(WorkerTransfers):
    """Moves blocks when the device is a GPU.

    Args:
        device: blocks that are computed on. Computing is what the engine's thread does on its
            current stream.
        host: blocks in pinned memory, laid out alike.
        disk: blocks on disk, if there are any.
        clock: times what the thread does; events time the rest.
    """

    def __init__(
        self, device: KVStore, host: KVStore, disk: BlockFile | None = None, *, clock: Clock
    ) -> None:
        super().__init__(device, host, disk, clock, bounce_buffer(device, pinned=True))
        self._device = device.data.device
        self._streams = {
            tier: torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            for tier in Tier
        }
        # What the compute stream had been given when a job was submitted.
        self._computed: dict[Job, torch.cuda.Event] = {}
        self._deferred: dict[Job, None] = {}
        self._enqueued: dict[Job, _Span] = {}

    def fence(self, tickets: Collection[Ticket]) -> float:
        """Have the compute stream wait for `tickets`, and the host only for those of the disk."""
        others = []
        for ticket in tickets:
            job = self._in_flight.get(ticket)
            if job in self._enqueued:
                torch.cuda.current_stream(self._device).wait_event(self._enqueued[job].ended)
            else:
                others.append(ticket)
        return self.wait(others)

    def _start(self, job: Job) -> None:
        self._computed[job] = torch.cuda.current_stream(self._device).record_event()
        self._deferred[job] = None
        self._begin_deferred()

    def _finish(self, jobs: Sequence[Job]) -> None:
        for job in prerequisites(jobs, self._in_flight.values()):
            if job in self._deferred:
                self._begin(job)
            if job in self._enqueued:
                self._land(job, must_wait=True)
            elif not job.is_done:
                self._worker.finish([job])

    def _settle(self) -> None:
        super()._settle()
        running: set[Tier] = set()
        for job in list(self._enqueued):
            stream = job.ticket.destination
            if stream not in running and not self._land(job, must_wait=False):
                running.add(stream)
        self._begin_deferred()

    def _note(self, job: Job) -> None:
        super()._note(job)
        self._computed.pop(job, None)
        self._enqueued.pop(job, None)

    def _begin_deferred(self) -> None:
        passed_over = set()
        for job in list(self._deferred):
            if job.link not in passed_over and self._can_begin(job):
                self._begin(job)
            else:
                passed_over.add(job.link)

    def _can_begin(self, job: Job) -> bool:
        if Tier.DISK in job.link:
            return all(
                earlier.is_done or (Tier.DISK in earlier.link and earlier not in self._deferred)
                for earlier in job.after
            )
        return all(earlier.is_done or earlier in self._enqueued for earlier in job.after)

    def _begin(self, job: Job) -> None:
        del self._deferred[job]
        if Tier.DISK in job.link:
            self._worker.put(job)
            return
        failure = job.spoiled()
        if failure is None:
            try:
                self._enqueued[job] = self._enqueue(job)
            except RuntimeError as error:
                failure = f"CUDA did not take the copy: {error}"
        if failure is not None:
            job.end(0.0, failure)
            self._note(job)

    def _enqueue(self, job: Job) -> _Span:
        """Put a job's copies on the stream of its direction."""
        ticket = job.ticket
        stream = self._streams[ticket.destination]
        span = _Span(_timed_event(), _timed_event())
        stream.wait_event(self._computed[job])
        for earlier in job.after:
            if earlier in self._enqueued:
                stream.wait_event(self._enqueued[earlier].ended)
        stores = self._stores[ticket.source], self._stores[ticket.destination]
        span.began.record(stream)
        with torch.cuda.stream(stream):
            for source, destination in ticket.copies:
                _enqueue_run(stores[0], source, stores[1], destination)
        span.ended.record(stream)
        return span

    def _land(self, job: Job, *, must_wait: bool) -> bool:
        """Take note of an enqueued job if it is done, and return whether it is."""
        span = self._enqueued[job]
        try:
            if must_wait:
                span.ended.synchronize()
            elif not span.ended.query():  # type: ignore[no-untyped-call]
                return False
            job.end(span.began.elapsed_time(span.ended) / 1e3, None)
        except RuntimeError as error:
            job.end(0.0, f"CUDA failed in or before the copy: {error}")
        self._note(job)
        return True

    def _move(self, job: Job) -> None:
        self._streams[Tier.DISK].wait_event(self._computed[job])
        super()._move(job)

    def _copy(
        self, source: KVStore, source_run: Extent, destination: KVStore, destination_run: Extent
    ) -> None:
        if self._stores[Tier.DEVICE] not in (source, destination):
            copy_in_memory(source, source_run, destination, destination_run)
            return
        with torch.cuda.stream(self._streams[Tier.DISK]):
            _enqueue_run(source, source_run, destination, destination_run)
        self._streams[Tier.DISK].synchronize()


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _enqueue_run(
    source: KVStore, source_run: Extent, destination: KVStore, destination_run: Extent
) -> None:
    """Put the copies of a run of blocks on the current stream."""
    origins, targets = source.pieces(source_run), destination.pieces(destination_run)
    for origin, target in zip(origins, targets, strict=True):
        target.copy_(origin, non_blocking=True)
