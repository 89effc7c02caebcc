"""A thread that copies beside the steps, and lends its work to whoever cannot wait for it.

    put ──▶ queued ──▶ run by the thread ─────────┐
                 └───▶ run by who waits for it ───┴──▶ ended

Knows: the order in which jobs may begin, and how a job that fails ends.
Does not know: where a job's bytes lie or what moves them.

Invariants:
    Jobs of one link (source and destination tier) begin in the order in which they were put, and
    none begins before those it comes after are done.
    A job that is queued can begin as soon as the jobs that run are done: whatever is put comes
    after jobs that were put before it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from evenflow.core.clock import Clock
from evenflow.memory.transfers import Outcome, Ticket, Tier

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """A ticket on its way.

    Attributes:
        ticket: what is to be copied.
        after: jobs that must be done before it begins; empty once it is done.
        seconds: how long its copies took.
        failure: why its destination must not be trusted.
        is_done: whether it has ended, well or not.
    """

    ticket: Ticket
    after: tuple[Job, ...] = ()
    seconds: float = 0.0
    failure: str | None = None
    is_done: bool = False

    @property
    def link(self) -> tuple[Tier, Tier]:
        """Its source and destination tier."""
        return self.ticket.source, self.ticket.destination

    def outcome(self) -> Outcome:
        """Return how it ended."""
        return Outcome(self.ticket, self.seconds, self.failure)

    def end(self, seconds: float, failure: str | None) -> None:
        """Note that it is done, and how."""
        self.seconds, self.failure, self.is_done = seconds, failure, True
        self.after = ()  # or every job would keep alive all that came before it

    def spoiled(self) -> str | None:
        """Return why it need not be run: what it would read has never arrived."""
        for earlier in self.after:
            written = earlier.ticket
            if (
                earlier.failure is not None
                and written.destination is self.ticket.source
                and any(
                    target.overlaps(source)
                    for _, target in written.copies
                    for source, _ in self.ticket.copies
                )
            ):
                return f"there was nothing to copy: {earlier.failure}"
        return None


def prerequisites(jobs: Collection[Job], queue: Collection[Job]) -> list[Job]:
    """Return what of `queue` must be run so that `jobs` are done, in the order of the queue.

    Args:
        jobs: what is wanted.
        queue: jobs that have not begun, in the order in which they were put.
    """
    wanted = set(jobs)
    links = set()
    chosen = []
    for job in reversed(list(queue)):
        if job in wanted or job.link in links:
            chosen.append(job)
            links.add(job.link)
            wanted.update(job.after)
    return chosen[::-1]


class CopyWorker:
    """Runs jobs one by one in a thread of its own, which starts with the first job.

    What leads to disk is begun only when nothing else can be: such copies are slow, and nobody
    waits for them as long as there is room. All methods are for one and the same thread.

    Args:
        move: does the copies of a job, in the thread that calls it; may raise.
        clock: times them.

    Attributes:
        is_closed: whether no job may be put any more.
    """

    def __init__(self, move: Callable[[Job], None], clock: Clock) -> None:
        self._move = move
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: dict[Job, None] = {}
        self._ended: deque[Job] = deque()
        self._thread: threading.Thread | None = None
        self.is_closed = False

    def put(self, job: Job) -> None:
        """Queue a job; the worker must not be closed."""
        with self._changed:
            self._queue[job] = None
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="kv-transfers", daemon=True)
            self._thread.start()

    def ended(self) -> Iterable[Job]:
        """Yield the jobs that are done and were not returned before, in order of completion."""
        while self._ended:
            yield self._ended.popleft()

    def finish(self, jobs: Collection[Job]) -> None:
        """Return when `jobs` are done, having run here what the thread has not begun."""
        with self._changed:
            mine = prerequisites(jobs, self._queue)
            for job in mine:
                del self._queue[job]
        try:
            for job in mine:
                self._run(job)
        finally:
            for job in mine:
                if not job.is_done:  # an exception came from outside, such as KeyboardInterrupt
                    self._end(job, 0.0, "the copy was interrupted")
        with self._changed:
            self._changed.wait_for(lambda: all(job.is_done for job in jobs))

    def close(self) -> None:
        """End the thread when its queue is empty."""
        self.is_closed = True
        if self._thread is not None:
            with self._changed:
                self._changed.notify()
            self._thread.join()

    def _work(self) -> None:
        while (job := self._take()) is not None:
            self._run(job)

    def _take(self) -> Job | None:
        """Wait for a job that can begin and take it; None if there will be no more."""
        with self._changed:
            while (job := self._next()) is None:
                if self.is_closed and not self._queue:
                    return None
                self._changed.wait()
            del self._queue[job]
            return job

    def _next(self) -> Job | None:
        """Choose what begins next, if anything can."""
        passed_over = set()
        to_disk = None
        for job in self._queue:
            if job.link in passed_over:
                continue
            can_begin = all(earlier.is_done for earlier in job.after)
            if can_begin and job.ticket.destination is not Tier.DISK:
                return job
            if can_begin and to_disk is None:
                to_disk = job
            passed_over.add(job.link)
        return to_disk

    def _run(self, job: Job) -> None:
        """Do a job's copies when what it comes after is done."""
        with self._changed:
            self._changed.wait_for(lambda: all(earlier.is_done for earlier in job.after))
        failure = job.spoiled()
        began_s = self._clock.now_s()
        if failure is None:
            failure = self._attempt(job)
        self._end(job, self._clock.now_s() - began_s, failure)

    def _attempt(self, job: Job) -> str | None:
        """Do a job's copies and return what went wrong, if anything did."""
        source, destination = job.ticket.source.value, job.ticket.destination.value
        try:
            self._move(job)
        except (OSError, ValueError) as error:
            return f"blocks could not be copied from {source} to {destination}: {error}"
        except Exception as bug:
            logger.exception(
                "a copy of blocks failed: source=%s destination=%s", source, destination
            )
            return f"blocks could not be copied from {source} to {destination}: {bug!r}"
        return None

    def _end(self, job: Job, seconds: float, failure: str | None) -> None:
        with self._changed:
            job.end(seconds, failure)
            self._ended.append(job)
            self._changed.notify_all()
