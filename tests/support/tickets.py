"""Words about tickets."""

from __future__ import annotations

from collections.abc import Iterable

from evenflow.memory.transfers import Outcome, Ticket


def tickets_of(outcomes: Iterable[Outcome]) -> list[Ticket]:
    """Return whose outcomes these are."""
    return [outcome.ticket for outcome in outcomes]
