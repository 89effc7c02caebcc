"""When requests come: at their own times, and in a session not before the last answer."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush

from evenflow.core.errors import InvalidRequestError
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces.recent import Recent

_BEGIN = WorkloadRequest(num_prompt_tokens=0, num_output_tokens=0, arrival_s=-math.inf)
_END = WorkloadRequest(num_prompt_tokens=0, num_output_tokens=0, arrival_s=math.inf)


class Arrivals:
    """Hands out requests when they are due, reading the workload only as far as needed.

    A turn of a session is due at its own time, but not before `think_time_s` have passed since the
    answer to the turn before was complete.

    Args:
        requests: in order of arrival.
    """

    def __init__(self, requests: Iterable[WorkloadRequest]) -> None:
        self._unread: Iterator[WorkloadRequest] = iter(requests)
        self._head = _BEGIN
        self._due: list[tuple[float, int, WorkloadRequest]] = []
        self._num_due = 0
        # Turns that have been read, of each session whose last turn has not been answered.
        self._turns: dict[str, deque[WorkloadRequest]] = {}
        # When the last answer to each of the other sessions was complete.
        self._ends: Recent[str, float] = Recent()
        self._read_next()

    @property
    def next_s(self) -> float:
        """When the next request is due; infinite if all wait for an answer."""
        return min(self._head.arrival_s, self._due[0][0]) if self._due else self._head.arrival_s

    def take(self, now_s: float) -> Iterator[tuple[float, WorkloadRequest]]:
        """Yield the requests that are due by now, with the times at which they were.

        Raises:
            InvalidRequestError: the workload is not in order of arrival.
        """
        while self.next_s <= now_s:
            if self._due and self._due[0][0] <= self._head.arrival_s:
                due_s, _, request = heappop(self._due)
                yield due_s, request
                continue
            request = self._read_next()
            if request.session is None:
                yield request.arrival_s, request
            elif request.session in self._turns:
                self._turns[request.session].append(request)
            else:
                self._turns[request.session] = deque()
                end_s = self._ends.get(request.session)
                if end_s is None:
                    yield request.arrival_s, request
                else:
                    self._follow(request, end_s)

    def answered(self, session: str, now_s: float) -> None:
        """The last turn of a session has been answered: the next one comes when it is due."""
        turns = self._turns[session]
        if turns:
            self._follow(turns.popleft(), now_s)
        else:
            del self._turns[session]
            self._ends.set(session, now_s)

    def _follow(self, request: WorkloadRequest, end_s: float) -> None:
        """Let a turn come after the answer that was complete at `end_s`."""
        due_s = max(request.arrival_s, end_s + request.think_time_s)
        heappush(self._due, (due_s, self._num_due, request))
        self._num_due += 1

    def _read_next(self) -> WorkloadRequest:
        """Return the next request that was read, and read one more."""
        head, self._head = self._head, next(self._unread, _END)
        if not head.arrival_s <= self._head.arrival_s < math.inf and self._head is not _END:
            raise InvalidRequestError(
                "the workload is not in order of arrival",
                why=f"{self._head.arrival_s} s comes after {head.arrival_s} s",
                fix="Sort it by arrival_s, which must be finite",
            )
        return head
