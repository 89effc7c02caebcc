"""What was moved between tiers so far."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from evenflow.memory.transfers import Outcome, Ticket, Tier


@dataclass(slots=True)
class TransferStats:
    """Counts by (source, destination).

    Attributes:
        num_blocks: blocks.
        num_copies: runs of blocks.
        seconds: time that the transfers took by themselves.
        num_failures: tickets that failed.
    """

    num_blocks: Counter[tuple[Tier, Tier]] = field(default_factory=Counter)
    num_copies: Counter[tuple[Tier, Tier]] = field(default_factory=Counter)
    seconds: defaultdict[tuple[Tier, Tier], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    num_failures: Counter[tuple[Tier, Tier]] = field(default_factory=Counter)

    def note_submitted(self, ticket: Ticket) -> None:
        """Count what a ticket is going to move."""
        direction = ticket.source, ticket.destination
        self.num_blocks[direction] += ticket.num_blocks
        self.num_copies[direction] += len(ticket.copies)

    def note_ended(self, outcome: Outcome) -> None:
        """Count how a ticket ended."""
        direction = outcome.ticket.source, outcome.ticket.destination
        self.seconds[direction] += outcome.seconds
        self.num_failures[direction] += outcome.failure is not None
