"""The seam between deciding and doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from evenflow.core.ids import RequestId
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult


class Executor(Protocol):
    """Carries out step plans: a real model, a script, or a simulation."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the planned tokens, write their KV, and sample where a request's tokens end."""
        ...


class ScriptedExecutor:
    """Computes nothing and takes tokens from a function: for tests, replays and measuring.

    Args:
        next_token: called with (request id, number of tokens so far), returns the next token.
    """

    def __init__(self, next_token: Callable[[RequestId, int], int]) -> None:
        self._next_token = next_token

    def execute(self, plan: StepPlan) -> StepResult:
        """Return a scripted token for every request whose tokens end in this step."""
        next_token = self._next_token
        return StepResult(
            [
                next_token(request.request_id, len(request.token_ids))
                if request.num_computed_tokens + count == len(request.token_ids)
                else NO_TOKEN
                for request, count in zip(plan.requests, plan.num_new_tokens, strict=True)
            ]
        )
