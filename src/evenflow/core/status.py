"""The life of a request, as an enum and a table of legal moves.

WAITING ──▶ RUNNING ──▶ FINISHED_STOPPED | FINISHED_LENGTH
   ▲  │        │  │
   │  │        │  └──▶ FINISHED_ABORTED | FINISHED_ERROR | FINISHED_EXPIRED
   │  │        ▼
   │  │    PREEMPTED ──▶ RUNNING            both also ──▶ SWAPPING_IN ──▶ RUNNING
   │  │        │
   │  └────────┴─────▶ FINISHED_ABORTED | FINISHED_ERROR | FINISHED_EXPIRED
"""

from __future__ import annotations

from enum import IntEnum


class RequestStatus(IntEnum):
    """Where a request stands. Everything from FINISHED_STOPPED on is final."""

    WAITING = 0
    RUNNING = 1
    PREEMPTED = 2
    SWAPPING_IN = 3
    FINISHED_STOPPED = 10
    FINISHED_LENGTH = 11
    FINISHED_ABORTED = 12
    FINISHED_ERROR = 13
    FINISHED_EXPIRED = 14

    @property
    def is_finished(self) -> bool:
        """Whether the request has ended, for whatever reason."""
        return self >= RequestStatus.FINISHED_STOPPED

    @property
    def finish_reason(self) -> str | None:
        """The word for the ending, OpenAI's where it has one; None while the request lives."""
        return _FINISH_REASONS.get(self)


_FINISH_REASONS = {
    RequestStatus.FINISHED_STOPPED: "stop",
    RequestStatus.FINISHED_LENGTH: "length",
    RequestStatus.FINISHED_ABORTED: "abort",
    RequestStatus.FINISHED_ERROR: "error",
    RequestStatus.FINISHED_EXPIRED: "timeout",
}

_ENDS = frozenset(_FINISH_REASONS)
_FORCED_ENDS = frozenset(
    {
        RequestStatus.FINISHED_ABORTED,
        RequestStatus.FINISHED_ERROR,
        RequestStatus.FINISHED_EXPIRED,
    }
)

TRANSITIONS: dict[RequestStatus, frozenset[RequestStatus]] = {
    RequestStatus.WAITING: frozenset({RequestStatus.RUNNING, RequestStatus.SWAPPING_IN})
    | _FORCED_ENDS,
    RequestStatus.RUNNING: frozenset({RequestStatus.PREEMPTED}) | _ENDS,
    RequestStatus.PREEMPTED: frozenset({RequestStatus.RUNNING, RequestStatus.SWAPPING_IN})
    | _FORCED_ENDS,
    RequestStatus.SWAPPING_IN: frozenset({RequestStatus.RUNNING}) | _FORCED_ENDS,
    **{end: frozenset() for end in _ENDS},
}
