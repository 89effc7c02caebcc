"""The seam between deciding what moves and moving it.

    submit ──▶ Ticket ──in flight──▶ done
                 │                     └─ poll reports it once, as an Outcome; wait returns
                 └─ its source and destination ranges are fenced until then

A block that leaves the device may be given away at once, but nobody may write into it while a
ticket in flight reads it, and a block that arrives may be used only when no ticket in flight writes
it. `overlapping` finds the tickets that somebody who wants a range has to wait for: those and no
others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from evenflow.memory.extents import Extent

Copy = tuple[Extent, Extent]
"""Source and destination, equally long."""


class Tier(Enum):
    """Where a block lies. Block ids are counted for each tier by itself."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass(slots=True, frozen=True, eq=False)
class Ticket:
    """Copies that were submitted together and are done together.

    Attributes:
        source: the tier that is read.
        destination: the tier that is written.
        copies: what goes where.
    """

    source: Tier
    destination: Tier
    copies: tuple[Copy, ...]

    @property
    def num_blocks(self) -> int:
        """Blocks that are moved."""
        return sum(source.length for source, _ in self.copies)

    def touches(self, tier: Tier, extents: Collection[Extent]) -> bool:
        """Return whether it reads or writes any block of `extents` on a tier."""
        for source, destination in self.copies:
            if tier is self.source and any(map(source.overlaps, extents)):
                return True
            if tier is self.destination and any(map(destination.overlaps, extents)):
                return True
        return False


@dataclass(slots=True, frozen=True)
class Outcome:
    """How a ticket ended.

    Attributes:
        ticket: the ticket.
        seconds: how long its copies took, without the time it waited for its turn.
        failure: why its destination must not be trusted, in words; None if all went well.
    """

    ticket: Ticket
    seconds: float
    failure: str | None = None


def overlapping(tickets: Iterable[Ticket], tier: Tier, extents: Collection[Extent]) -> list[Ticket]:
    """Return the tickets that read or write any block of `extents` on a tier."""
    return [ticket for ticket in tickets if ticket.touches(tier, extents)]


class TransferEngine(Protocol):
    """Moves blocks between tiers beside the steps. It alone knows threads, streams and events.

    A transfer that fails never raises; its outcome says so.
    """

    @property
    def bytes_per_block(self) -> int:
        """Bytes of a block over all layers."""
        ...

    @property
    def num_pieces(self) -> int:
        """Copies that a run of blocks takes.

        One when a block is one range over all layers (block-first), twice the number of layers when
        the keys and the values of every layer lie apart (layer-first).
        """
        ...

    @property
    def in_flight(self) -> Collection[Ticket]:
        """The tickets that are not known to be done, in order of submission."""
        ...

    def submit(
        self,
        source: Tier,
        destination: Tier,
        copies: Sequence[Copy],
        *,
        after: Collection[Ticket] = (),
    ) -> Ticket:
        """Start some copies and return at once.

        What leaves the device is copied as the last step that was started leaves it.

        Args:
            source: tier to read.
            destination: tier to write.
            copies: what goes where.
            after: tickets that must be done before the first copy begins.
        """
        ...

    def poll(self) -> list[Outcome]:
        """Return how tickets ended that were not returned before, in order of completion."""
        ...

    def wait(self, tickets: Collection[Ticket]) -> float:
        """Return when all `tickets` are done, and how many seconds that took.

        `poll` reports them all the same.
        """
        ...

    def fence(self, tickets: Collection[Ticket]) -> float:
        """See to it that whatever is computed from now on finds `tickets` done.

        Returns:
            Seconds that the caller was held up: none where the device itself can wait.
        """
        ...

    def close(self) -> None:
        """Let what is in flight end, and give back what the engine holds."""
        ...
