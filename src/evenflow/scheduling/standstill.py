"""Why the waiting queue stands still, and what part of that each request sat through.

Only the request at the door knows what it lacks; those behind it wait because it waits. Asking
everybody in every step would cost time per waiting request, so the seconds are summed once for the
queue, by reason, and a request's share is the difference between when it came and when it left.

    seats    |-- 1.0 s --|             |-- 2.0 s --|
    memory               |--- 1.5 s ---|
    a request      |--------------------->  0.5 s for seats, 1.5 s for memory, 1.0 s for seats

Knows: reasons and seconds.
Does not know: who is at the door, or why.
"""

from __future__ import annotations

from collections.abc import Collection

from evenflow.core.events import WaitReason
from evenflow.core.ids import RequestId


class Standstill:
    """Seconds by reason, for the queue and for each request in it."""

    def __init__(self) -> None:
        self._reason: WaitReason | None = None
        self._since_s = 0.0
        self._seconds = dict.fromkeys(WaitReason, 0.0)
        self._at_entry: dict[RequestId, dict[WaitReason, float]] = {}

    @property
    def request_ids(self) -> Collection[RequestId]:
        """The requests that entered and did not leave."""
        return self._at_entry.keys()

    def note(self, reason: WaitReason | None, now_s: float) -> None:
        """Say why nobody more can start from now on; None if nothing is known."""
        if self._reason is not None:
            self._seconds[self._reason] += now_s - self._since_s
        self._reason = reason
        self._since_s = now_s

    def enter(self, request_id: RequestId, now_s: float) -> None:
        """Begin to count for a request."""
        self.note(self._reason, now_s)
        self._at_entry[request_id] = self._seconds.copy()

    def shares(self, request_id: RequestId, now_s: float) -> list[tuple[WaitReason, float]]:
        """Return what a request that entered has sat through, in seconds, the longest first."""
        self.note(self._reason, now_s)
        before = self._at_entry[request_id]
        if before == self._seconds:
            return []
        shares = [(reason, total - before[reason]) for reason, total in self._seconds.items()]
        return sorted(
            ((reason, share) for reason, share in shares if share > 0), key=lambda item: -item[1]
        )

    def leave(self, request_id: RequestId) -> None:
        """Stop counting for a request that entered."""
        del self._at_entry[request_id]
