"""The seam between deciding what moves and moving it.

    submit ──▶ Ticket ──in flight──▶ done
                 │                     └─ poll reports it once; wait returns
                 └─ its source and destination ranges are fenced until then

A block that leaves the device may be given away only when no ticket in flight reads it, and a block
that arrives may be used only when no ticket in flight writes it. `overlapping` finds the tickets
that somebody who wants a range has to wait for: those and no others.
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

    def touches(self, tier: Tier, extents: Collection[Extent]) -> bool:
        """Return whether it reads or writes any block of `extents` on a tier."""
        for source, destination in self.copies:
            if tier is self.source and any(map(source.overlaps, extents)):
                return True
            if tier is self.destination and any(map(destination.overlaps, extents)):
                return True
        return False


def overlapping(tickets: Iterable[Ticket], tier: Tier, extents: Collection[Extent]) -> list[Ticket]:
    """Return the tickets that read or write any block of `extents` on a tier."""
    return [ticket for ticket in tickets if ticket.touches(tier, extents)]


class TransferEngine(Protocol):
    """Moves blocks between tiers beside the steps. It alone knows streams and events."""

    def submit(self, source: Tier, destination: Tier, copies: Sequence[Copy]) -> Ticket:
        """Start some copies and return at once."""
        ...

    def poll(self) -> list[Ticket]:
        """Return the tickets that are done and were not returned before, in order of completion."""
        ...

    def wait(self, ticket: Ticket) -> None:
        """Return when a ticket is done; `poll` reports it all the same."""
        ...

    @property
    def in_flight(self) -> Collection[Ticket]:
        """The tickets that are not known to be done, in order of submission."""
        ...
