"""What happened to a request, with its cause: the raw material of `explain`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class EventKind(Enum):
    """A turning point in a request's life."""

    QUEUED = "queued"
    HELD = "held"
    SCHEDULED = "scheduled"
    FIRST_TOKEN = "first_token"
    PREEMPTED = "preempted"
    RESUMED = "resumed"
    FINISHED = "finished"


@dataclass(slots=True, frozen=True)
class RequestEvent:
    """One turning point.

    Attributes:
        kind: what happened.
        at_s: when, in the engine clock's seconds.
        cause: why, in words for the user, with numbers.
    """

    kind: EventKind
    at_s: float
    cause: str
