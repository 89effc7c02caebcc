"""The waiting requests, in rank order."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.scheduling.policy import Policy, RankKey


class WaitingQueue:
    """Keeps waiting requests sorted by the policy's rank.

    When ranks do not change with time a request is ranked once, on entry; otherwise `refresh` ranks
    everybody anew.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._entries: list[tuple[RankKey, int, Request]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, _, request in self._entries)

    def push(self, request: Request, now_s: float) -> None:
        """Add a request at its rank."""
        (key,) = self._policy.rank([request], now_s)
        insort(self._entries, (key, request.sequence_number, request))

    def remove(self, request_id: RequestId) -> None:
        """Take a request out, if it is here."""
        self._entries = [entry for entry in self._entries if entry[2].request_id != request_id]

    def refresh(self, now_s: float) -> None:
        """Rank everybody anew, if ranks change with time."""
        if self._policy.rank_changes_with_time and self._entries:
            requests = list(self)
            keys = self._policy.rank(requests, now_s)
            self._entries = sorted(
                (key, request.sequence_number, request)
                for key, request in zip(keys, requests, strict=True)
            )

    def first(self) -> Request:
        """Return the request that is next in line."""
        return self._entries[0][2]

    def pop(self) -> Request:
        """Take out the request that is next in line."""
        return self._entries.pop(0)[2]
