"""Preempts when a test says so."""

from __future__ import annotations

from evenflow.core.events import WaitReason
from evenflow.core.request import Request
from evenflow.scheduling.scheduler import Scheduler
from evenflow.scheduling.switching import Departure


def preempt(scheduler: Scheduler, request: Request, now_s: float = 0.0) -> Departure:
    """Have a running request give up its memory, as if another had needed it."""
    view = scheduler.view(now_s)
    return scheduler.residents.preempt(request, view, WaitReason.MEMORY, "the test says so")
