"""Transfers over slots, which take place as late as they may."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random

from evenflow.memory.transfers import Copy, Outcome, Ticket, Tier

Slots = dict[tuple[int, int], int | None]


class SlotTransfers:
    """Copies (block, offset) slots when a ticket is done, and not before.

    What a source holds by then is copied, so that whoever writes into it without waiting is found
    out; a ticket is done when it is waited for, or by lot when `poll` is called.

    Args:
        device: the slots of the device.
        block_size: tokens per block.
        random: draws.
        failure_rate: share of the tickets that fail, and leave nothing of use behind.
    """

    bytes_per_block = 1000
    num_pieces = 1

    def __init__(
        self, device: Slots, block_size: int, random: Random, *, failure_rate: float = 0.0
    ) -> None:
        self.stores: dict[Tier, Slots] = {Tier.DEVICE: device, Tier.HOST: {}, Tier.DISK: {}}
        self.num_blocks_moved = 0
        self._block_size = block_size
        self._random = random
        self._failure_rate = failure_rate
        self._after: dict[Ticket, list[Ticket]] = {}
        self._outcomes: list[Outcome] = []

    @property
    def in_flight(self) -> Collection[Ticket]:
        return self._after.keys()

    def submit(
        self,
        source: Tier,
        destination: Tier,
        copies: Sequence[Copy],
        *,
        after: Collection[Ticket] = (),
    ) -> Ticket:
        ticket = Ticket(source, destination, tuple(copies))
        assert all(origin.length == target.length for origin, target in copies)
        self._after[ticket] = list(after)
        return ticket

    def poll(self) -> list[Outcome]:
        for ticket in list(self._after):
            if ticket in self._after and self._random.random() < 0.4:
                self._finish(ticket)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def wait(self, tickets: Collection[Ticket]) -> float:
        for ticket in tickets:
            self._finish(ticket)
        return 0.0

    def fence(self, tickets: Collection[Ticket]) -> float:
        return self.wait(tickets)

    def close(self) -> None:
        self.wait(list(self._after))

    def _finish(self, ticket: Ticket) -> None:
        if ticket not in self._after:
            return
        for earlier in self._after[ticket]:
            self._finish(earlier)
        del self._after[ticket]
        fails = self._random.random() < self._failure_rate
        source, destination = self.stores[ticket.source], self.stores[ticket.destination]
        for origin, target in ticket.copies:
            for at, to in zip(origin.block_ids, target.block_ids, strict=True):
                for offset in range(self._block_size):
                    destination[to, offset] = None if fails else source.get((at, offset))
        self.num_blocks_moved += ticket.num_blocks
        seconds = 0.001 * ticket.num_blocks
        self._outcomes.append(Outcome(ticket, seconds, "told to fail" if fails else None))
