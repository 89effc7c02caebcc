"""A transfer engine that moves nothing, and whose tickets end when a test says so."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from evenflow.memory.transfers import Copy, Outcome, Ticket, Tier

SECONDS_PER_BLOCK = 0.001


class HandTransfers:
    """Remembers what it was asked to do.

    Attributes:
        tickets: all that were submitted, in order.
        after: what each comes after.
        waited: the tickets that were waited for while they were in flight, in order.
        fenced: the same for those that were fenced.
        fails: links whose tickets fail when they end because somebody waits.
        seconds_per_block: that a transfer takes.
    """

    bytes_per_block = 1000
    num_pieces = 1

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.after: dict[Ticket, list[Ticket]] = {}
        self.waited: list[Ticket] = []
        self.fenced: list[Ticket] = []
        self.fails: set[tuple[Tier, Tier]] = set()
        self.seconds_per_block = SECONDS_PER_BLOCK
        self._in_flight: dict[Ticket, None] = {}
        self._outcomes: list[Outcome] = []

    @property
    def in_flight(self) -> Collection[Ticket]:
        return self._in_flight.keys()

    def submit(
        self,
        source: Tier,
        destination: Tier,
        copies: Sequence[Copy],
        *,
        after: Collection[Ticket] = (),
    ) -> Ticket:
        ticket = Ticket(source, destination, tuple(copies))
        self.tickets.append(ticket)
        self.after[ticket] = list(after)
        self._in_flight[ticket] = None
        return ticket

    def end(self, tickets: Iterable[Ticket] | None = None, failure: str | None = None) -> None:
        """End some tickets, or all that are in flight."""
        for ticket in list(self._in_flight if tickets is None else tickets):
            del self._in_flight[ticket]
            seconds = self.seconds_per_block * ticket.num_blocks
            self._outcomes.append(Outcome(ticket, seconds, failure))

    def poll(self) -> list[Outcome]:
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def wait(self, tickets: Collection[Ticket]) -> float:
        waited = [ticket for ticket in tickets if ticket in self._in_flight]
        self.waited += waited
        return self._finish(waited)

    def fence(self, tickets: Collection[Ticket]) -> float:
        fenced = [ticket for ticket in tickets if ticket in self._in_flight]
        self.fenced += fenced
        return self._finish(fenced)

    def close(self) -> None:
        self.end()

    def _finish(self, tickets: Sequence[Ticket]) -> float:
        for ticket in tickets:
            self._finish([earlier for earlier in self.after[ticket] if earlier in self._in_flight])
            if ticket in self._in_flight:
                is_failing = (ticket.source, ticket.destination) in self.fails
                self.end([ticket], "told to fail" if is_failing else None)
        return sum(self.seconds_per_block * ticket.num_blocks for ticket in tickets)
