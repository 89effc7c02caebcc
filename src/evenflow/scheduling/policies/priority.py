"""Lower priority number first, as in vLLM; order of arrival among equals."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.core.request import RequestView
from evenflow.scheduling.policies.fcfs import Fcfs
from evenflow.scheduling.policy import RankKey


class Priority(Fcfs):
    """Serves by priority; the least urgent gives up memory first."""

    def rank(self, requests: Sequence[RequestView], now_s: float) -> list[RankKey]:
        """Order by priority, then arrival."""
        return [(request.priority, request.sequence_number) for request in requests]
