"""Lower priority number first, as in vLLM; order of arrival among equals."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.core.request import RequestView
from evenflow.scheduling.policies.fcfs import Fcfs
from evenflow.scheduling.policy import RankKey, SchedulingView


class Priority(Fcfs):
    """Serves by priority; the least urgent gives up memory first."""

    def rank(self, requests: Sequence[RequestView], view: SchedulingView) -> list[RankKey]:
        """Order by priority, then arrival."""
        return [(request.priority, request.sequence_number) for request in requests]

    def displaces(
        self, candidate: RequestView, resident: RequestView, view: SchedulingView
    ) -> bool:
        """Displace who is less urgent."""
        return candidate.priority < resident.priority
