"""The door: who waits, what for, and who comes in next.

    queue ──▶ waiting ──admit──▶ resident     (who is preempted is waiting again)
                 ▲
    hold ──▶ held until its parent has computed the prompt of both

In each step those who wait come in one by one in rank order, until the first of them lacks a seat,
tokens or memory, and nobody passes it. It may take the place of requests that it outranks. Requests
whose tenant runs as many as it may hold up nobody else.

Knows: the queue, what a step has room for, what each request is told about its wait.
Does not know: ranks, which are the policy's; who holds memory and gives it up, the residents'.

Invariants:
    Whoever waits or is held is told why, and by whom.
    While `lacking` is not None nothing has happened that could let anybody in but time and steps.
"""

from __future__ import annotations

from evenflow.core.events import WaitReason
from evenflow.core.request import Request
from evenflow.core.wording import counted
from evenflow.scheduling.policy import SchedulingView
from evenflow.scheduling.residents import Residents
from evenflow.scheduling.siblings import Siblings
from evenflow.scheduling.wait_log import WaitLog
from evenflow.scheduling.waiting import WaitingQueue


class Door:
    """Lets requests in.

    Args:
        waiting: those that could start.
        siblings: those that wait for their parent.
        waits: told what everybody waits for.
        residents: those that are in.
        max_num_seqs: most that may be in.

    Attributes:
        lacking: why nobody who waits could be started in the last step; None if nobody waits, or
            things have changed since.
    """

    def __init__(
        self,
        waiting: WaitingQueue,
        siblings: Siblings,
        waits: WaitLog,
        residents: Residents,
        max_num_seqs: int,
    ) -> None:
        self.lacking: WaitReason | None = None
        self._waiting = waiting
        self._siblings = siblings
        self._waits = waits
        self._residents = residents
        self._max_num_seqs = max_num_seqs

    def queue(self, request: Request, view: SchedulingView) -> None:
        """Put a request that never ran into the queue."""
        self.lacking = None
        self._waits.enter(request, len(self._waiting), view.now_s)
        self._waiting.push(request, view)
        if request.tenant_id in self._residents.seats.full:
            self._hold_back(request, view.now_s)

    def hold(self, request: Request, parent: Request, now_s: float) -> None:
        """Let a request wait until its parent has computed their prompt."""
        self._siblings.hold(request, parent.request_id)
        cause = f"{parent.request_id} computes the prompt for both"
        self._waits.hold(request, WaitReason.SIBLING, now_s, cause)

    def release_siblings(self, parent: Request, view: SchedulingView) -> None:
        """Queue who waited for a parent: with its prompt if it runs, else on their own."""
        for sibling in self._siblings.release(parent.request_id):
            if not parent.is_finished:
                self._residents.share(parent, sibling)
            self.queue(sibling, view)

    def admit(self, view: SchedulingView, token_budget: int) -> None:
        """Let in who waits, in rank order, until something runs out."""
        if not self._waiting:
            return
        self._waiting.refresh(view)
        lacking: WaitReason | None = None
        full = self._residents.seats.full
        while lacking is None and (request := self._waiting.first(view, full)) is not None:
            lacking = self._admit_or_displace(request, view, token_budget)
        self._waits.stand_still(lacking, view.now_s)
        self.lacking = lacking or (WaitReason.TENANT_LIMIT if self._waiting else None)
        for tenant_id in full:
            if (request := self._waiting.first_of(tenant_id)) is not None:
                self._hold_back(request, view.now_s)

    def rerank(self, request: Request, view: SchedulingView) -> None:
        """The rank of a live request has changed, wherever it is."""
        self.lacking = None
        self._waiting.rerank(request, view)

    def remove(self, request: Request, now_s: float) -> None:
        """A request has ended: take it out, if it is here."""
        self.lacking = None
        self._waiting.remove(request)
        self._waits.leave(request, now_s)
        self._siblings.forget(request)

    def _admit_or_displace(
        self, request: Request, view: SchedulingView, token_budget: int
    ) -> WaitReason | None:
        """Start the first that waits, or make room for it; return what it lacks otherwise."""
        residents, waits, now_s = self._residents, self._waits, view.now_s
        if residents.num_present >= self._max_num_seqs:
            if residents.displace(request, view):
                return None
            cause = f"no free seat among {self._max_num_seqs}"
            waits.hold(request, WaitReason.SEATS, now_s, cause)
            return WaitReason.SEATS
        if residents.num_missing_tokens >= token_budget:
            cause = f"running requests take all {token_budget} tokens of a step"
            waits.hold(request, WaitReason.TOKENS, now_s, cause)
            return WaitReason.TOKENS
        shortage = residents.admit(request, view)
        if shortage is None:
            waits.leave(request, now_s)
            return None
        waits.hold(request, WaitReason.MEMORY, now_s, shortage)
        if residents.displace(request, view):
            return None
        if not residents.num_present and residents.take_back_prompt():
            return None
        return WaitReason.MEMORY

    def _hold_back(self, request: Request, now_s: float) -> None:
        """Tell a request that its tenant runs as many as it may."""
        if request.events[-1].reason is not WaitReason.TENANT_LIMIT:
            num_running = self._residents.seats.num_running[request.tenant_id]
            cause = (
                f"tenant {request.tenant_id} runs {counted(num_running, 'request')}, "
                "as many as it may"
            )
            self._waits.hold(request, WaitReason.TENANT_LIMIT, now_s, cause)
