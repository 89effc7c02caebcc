"""Tells every request what it waits for, so that its events can be explained.

    enter ──▶ QUEUED ──hold──▶ HELD ──hold──▶ HELD ... leave
      pause ──▶ PAUSED, on top of whatever it was ──resume──▶ CONTINUED

A request at the door is told what it lacks. Those behind it are queued, and learn from the
`Standstill` what the queue lacked meanwhile.

Knows: who is queued, why the queue stands still, whether everything is paused.
Does not know: what decides about any of that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from evenflow.core.events import EventKind, RequestEvent, WaitReason
from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.wording import counted
from evenflow.scheduling.standstill import Standstill


class WaitLog:
    """Records waits with the requests.

    Attributes:
        is_paused: whether an operator has stopped everything.
    """

    def __init__(self) -> None:
        self.is_paused = False
        self._standstill = Standstill()

    @property
    def queued_ids(self) -> Collection[RequestId]:
        """Requests that entered and were neither held nor left."""
        return self._standstill.request_ids

    def enter(self, request: Request, num_others: int, now_s: float) -> None:
        """A request joins the queue, in which so many others are."""
        if not num_others:
            self.stand_still(None, now_s)  # why it stood still last concerns nobody any more
        request.record(EventKind.QUEUED, now_s, f"{counted(num_others, 'other')} waiting")
        self._standstill.enter(request.request_id, now_s)
        self._interrupt(request, now_s)

    def hold(self, request: Request, reason: WaitReason, now_s: float, cause: str) -> None:
        """Record what a waiting request lacks, unless that is known."""
        if request.events and request.events[-1].reason is reason:
            return
        self.leave(request, now_s)
        request.record_wait(reason, now_s, cause)
        self._interrupt(request, now_s)

    def leave(self, request: Request, now_s: float) -> None:
        """A request is queued no more: keep what it was queued for."""
        if request.request_id in self._standstill.request_ids:
            request.events[:] = self.timeline(request, now_s)
            self._standstill.leave(request.request_id)

    def stand_still(self, reason: WaitReason | None, now_s: float) -> None:
        """Say why nobody more in the queue can start from now on; None if nothing is known."""
        self._standstill.note(reason, now_s)

    def timeline(self, request: Request, now_s: float) -> list[RequestEvent]:
        """Return a request's events, with what it has been queued for by now."""
        events = list(request.events)
        if request.request_id not in self._standstill.request_ids:
            return events
        if lacked := self._standstill.shares(request.request_id, now_s):
            index = max(i for i, e in enumerate(events) if e.kind is EventKind.QUEUED)
            parts = [events[index].cause, *(f"{share:.3f} s for {r.value}" for r, share in lacked)]
            events[index] = replace(events[index], cause=", ".join(parts), reason=lacked[0][0])
        return events

    def pause(self, requests: Iterable[Request], now_s: float) -> None:
        """Everything stops: tell all who live, and from now on all who come."""
        self.is_paused = True
        self.stand_still(None, now_s)
        for request in requests:
            self._interrupt(request, now_s)

    def resume(self, requests: Iterable[Request], now_s: float) -> None:
        """Everything goes on where it was."""
        self.is_paused = False
        for request in requests:
            request.record_continuation(now_s)

    def _interrupt(self, request: Request, now_s: float) -> None:
        if self.is_paused:
            request.record_pause(now_s)
