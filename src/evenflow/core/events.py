"""What happened to a request, with its cause: the raw material of `explain`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

NUM_DETAILED_EVENTS = 32
"""From this many events on, a request's prefill chunks and its preemptions are merged and its
changes of reason while it waits are not recorded, so that the list stays short whatever its length
and its luck."""

MAX_NUM_PAUSABLE_EVENTS = 2 * NUM_DETAILED_EVENTS
"""From this many events on, pauses are not recorded either."""


class EventKind(Enum):
    """A turning point in a request's life."""

    QUEUED = "queued"
    HELD = "held"
    SWAPPING_IN = "swapping_in"
    SCHEDULED = "scheduled"
    PREFILL_CHUNK = "prefill_chunk"
    FIRST_TOKEN = "first_token"
    PREEMPTED = "preempted"
    RESUMED = "resumed"
    RECOMPUTED = "recomputed"
    PAUSED = "paused"
    CONTINUED = "continued"
    FINISHED = "finished"


class WaitReason(Enum):
    """What a request that does not run lacks."""

    SEATS = "seats"
    TOKENS = "tokens"
    MEMORY = "memory"
    TENANT_LIMIT = "tenant_limit"
    SIBLING = "sibling"
    PAUSE = "pause"
    RANK = "rank"


@dataclass(slots=True, frozen=True)
class RequestEvent:
    """One turning point.

    Attributes:
        kind: what happened.
        at_s: when, in the engine clock's seconds.
        cause: why, in words for the user, with numbers.
        reason: of a wait: what was lacking; for QUEUED, what the queue lacked the longest, known
            once the request has left it; for CONTINUED, what was lacking before the pause; for
            PREEMPTED, what it lost its place for.
        num_tokens: SCHEDULED, RESUMED: tokens that had KV already. PREFILL_CHUNK, FIRST_TOKEN,
            RECOMPUTED: tokens that were computed. PREEMPTED, PAUSED, FINISHED: tokens that had KV.
        num_times: PREFILL_CHUNK, PREEMPTED: how many of these were merged into this one.
    """

    kind: EventKind
    at_s: float
    cause: str
    reason: WaitReason | None = None
    num_tokens: int = 0
    num_times: int = 1
