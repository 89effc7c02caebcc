"""First come, first served."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.core.request import RequestView
from evenflow.scheduling.policy import (
    AdmissionView,
    Policy,
    RankKey,
    SchedulingView,
    split_fuse,
)


class Fcfs(Policy):
    """Serves in order of arrival; the last to come is the first to give up memory."""

    def rank(self, requests: Sequence[RequestView], view: SchedulingView) -> list[RankKey]:
        """Order by arrival."""
        return [(request.sequence_number,) for request in requests]

    def admit(self, request: RequestView, memory: AdmissionView) -> bool:
        """Admit when the whole prompt fits and every running request can still grow by a block.

        Without the second half a request would be admitted into the last blocks, and the next step
        would preempt it again.
        """
        headroom = memory.num_running
        return memory.num_needed_blocks + headroom <= memory.num_available_blocks

    def victims(self, residents: Sequence[RequestView]) -> Sequence[RequestView]:
        """Last in rank, first out."""
        return residents[::-1]

    def compose(self, residents: Sequence[RequestView], token_budget: int) -> list[int]:
        """Divide by Dynamic SplitFuse."""
        return split_fuse(residents, token_budget)
