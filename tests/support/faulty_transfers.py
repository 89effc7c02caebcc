"""A transfer engine in which things go wrong, and a disk made of a dict."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from evenflow.core.clock import Clock, MonotonicClock
from evenflow.execution.torch.copy_worker import Job
from evenflow.memory.transfers import Copy, Outcome, Ticket, Tier, TransferEngine

STALL_S = 0.05


class Fault(Enum):
    """What goes wrong with a ticket."""

    STALL = "begins 50 ms late"
    ERROR = "copies nothing and fails"
    TORN = "copies part and fails"
    HELD = "begins when it is released, or waited for"


def seeded_faults(
    seed: int, *, stall: float = 0.0, error: float = 0.0, torn: float = 0.0, held: float = 0.0
) -> Iterator[Fault | None]:
    """Yield what goes wrong with one ticket after the other, with the given probabilities."""
    rng = random.Random(seed)
    chances = [stall, error, torn, held]
    while True:
        yield rng.choices([*Fault, None], [*chances, 1 - sum(chances)])[0]


@dataclass(slots=True, eq=False)
class FaultyJob(Job):
    """A ticket, and the ticket of the engine below that it becomes when it begins."""

    fault: Fault | None = None
    begins_s: float = 0.0
    below: Ticket | None = None


class FaultyTransfers:
    """Does what another engine does, except for faults.

    What is late or held holds up only what comes after it.

    Args:
        engine: does the copies.
        faults: what goes wrong with each ticket in order of submission; then nothing does.
        clock: says when 50 ms have gone by.
        sleep: lets them go by.

    Attributes:
        faults: as given; may be replaced at any time.
        fenced: the tickets that were waited for or fenced while they were in flight, in order.
    """

    def __init__(
        self,
        engine: TransferEngine,
        faults: Iterable[Fault | None] = (),
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.faults = iter(faults)
        self.fenced: list[Ticket] = []
        self._engine = engine
        self._clock = clock or MonotonicClock()
        self._sleep = sleep
        self._jobs: dict[Ticket, FaultyJob] = {}
        self._by_ticket_below: dict[Ticket, FaultyJob] = {}
        self._outcomes: list[Outcome] = []

    @property
    def bytes_per_block(self) -> int:
        return self._engine.bytes_per_block

    @property
    def num_pieces(self) -> int:
        return self._engine.num_pieces

    @property
    def in_flight(self) -> Collection[Ticket]:
        return self._jobs.keys()

    @property
    def held(self) -> list[Ticket]:
        """The tickets that wait to be released."""
        return [ticket for ticket, job in self._jobs.items() if job.fault is Fault.HELD]

    def submit(
        self,
        source: Tier,
        destination: Tier,
        copies: Sequence[Copy],
        *,
        after: Collection[Ticket] = (),
    ) -> Ticket:
        ticket = Ticket(source, destination, tuple(copies))
        fault = next(self.faults, None)
        job = FaultyJob(ticket, tuple(self._jobs[t] for t in after if t in self._jobs), fault=fault)
        if fault is Fault.STALL:
            job.begins_s = self._clock.now_s() + STALL_S
        if fault in (Fault.ERROR, Fault.TORN):
            job.failure = f"a fault was injected: {fault.value}"
        self._jobs[ticket] = job
        self._begin_due()
        return ticket

    def release(self, tickets: Collection[Ticket] | None = None) -> None:
        """Let held tickets begin, all if none are named."""
        for ticket in self.held if tickets is None else tickets:
            self._jobs[ticket].fault = None
        self._begin_due()

    def poll(self) -> list[Outcome]:
        self._settle()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def wait(self, tickets: Collection[Ticket]) -> float:
        began_s = self._clock.now_s()
        self._engine.wait(self._press(tickets))
        self._settle()
        return self._clock.now_s() - began_s

    def fence(self, tickets: Collection[Ticket]) -> float:
        began_s = self._clock.now_s()
        below = self._press(tickets)
        pressed_s = self._clock.now_s() - began_s
        held_up_s = pressed_s + self._engine.fence(below)
        self._settle()
        return held_up_s

    def close(self) -> None:
        self.wait(self.in_flight)
        self._engine.close()

    def _press(self, tickets: Collection[Ticket]) -> list[Ticket]:
        """Begin tickets and what they come after; return what they are below."""
        jobs = [self._jobs[ticket] for ticket in tickets if ticket in self._jobs]
        self.fenced += [job.ticket for job in jobs]
        wanted = set(jobs)
        for job in reversed(self._jobs.values()):
            if job in wanted:
                wanted.update(job.after)
        for job in list(self._jobs.values()):
            if job in wanted and job.below is None:
                self._sleep(max(job.begins_s - self._clock.now_s(), 0.0))
                self._begin(job)
        return [job.below for job in jobs if job.below is not None]

    def _begin_due(self) -> None:
        now_s = self._clock.now_s()
        for job in self._jobs.values():
            is_due = job.fault is not Fault.HELD and job.begins_s <= now_s and job.below is None
            if is_due and all(earlier.is_done or earlier.below for earlier in job.after):
                self._begin(job)

    def _begin(self, job: FaultyJob) -> None:
        ticket = job.ticket
        job.failure = job.failure or job.spoiled()
        copies: Sequence[Copy] = ticket.copies
        if job.fault is Fault.ERROR:
            copies = ()
        elif job.fault is Fault.TORN:
            copies = first_half(copies)
        elif job.fault is Fault.HELD:
            job.fault = None
        after = [earlier.below for earlier in job.after if not earlier.is_done]
        job.below = self._engine.submit(ticket.source, ticket.destination, copies, after=after)
        self._by_ticket_below[job.below] = job

    def _settle(self) -> None:
        for outcome in self._engine.poll():
            job = self._by_ticket_below.pop(outcome.ticket)
            del self._jobs[job.ticket]
            job.end(outcome.seconds, job.failure or outcome.failure)
            self._outcomes.append(job.outcome())
        self._begin_due()


def first_half(copies: Sequence[Copy]) -> list[Copy]:
    """Return what is done when about half of the blocks are."""
    num_left = sum(source.length for source, _ in copies) // 2
    half = []
    for source, destination in copies:
        length = min(source.length, num_left)
        if 0 < length < source.length:
            source, destination = source.split(length)[0], destination.split(length)[0]
        if length:
            half.append((source, destination))
        num_left -= length
    return half


class DictBlocks:
    """A disk that remembers blocks by slot, and fails for slots that are `broken`."""

    def __init__(self) -> None:
        self.slots: dict[int, bytes] = {}
        self.broken: set[int] = set()

    def write(self, slot: int, data: memoryview) -> None:
        if slot in self.broken:
            raise OSError(28, "No space left on device")
        self.slots[slot] = bytes(data)

    def read(self, slot: int, into: memoryview) -> None:
        if slot in self.broken or slot not in self.slots:
            raise ValueError(f"the checksum of slot {slot} is wrong")
        into[:] = self.slots[slot]
