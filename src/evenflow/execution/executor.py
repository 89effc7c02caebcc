"""The seam between deciding and doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult


class Executor(Protocol):
    """Carries out step plans: a real model, a script, or a simulation."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the planned tokens, write their KV, and sample where a request's tokens end.

        Of a request with `pooling`, the hidden states are summed instead, row after row, so that
        the sum does not depend on how its prompt was cut into steps. Of a request with a grammar,
        only tokens that it allows are sampled, and it accepts the one that was.
        """
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
        work = list(zip(plan.requests, plan.num_new_tokens, strict=True))
        result = StepResult(
            [
                next_token(request.request_id, len(request.token_ids))
                if request.num_computed_tokens + count == len(request.token_ids)
                and request.pooling is None
                else NO_TOKEN
                for request, count in work
            ]
        )
        for index, (request, count) in enumerate(work):
            if request.pooling is not None:
                result.hidden_sums[index] = scripted_hidden_sum(request, count)
        return result


def scripted_hidden_sum(request: Request, count: int) -> npt.NDArray[np.float64]:
    """Sum hidden states as a model without numbers has them: (1, position, token id), per token."""
    first = request.num_computed_tokens
    rows = [(1, at, request.token_ids[at]) for at in range(first, first + count)]
    total: npt.NDArray[np.float64] = np.array(rows, dtype=np.float64).sum(axis=0)
    return total if request.hidden_sum is None or not first else request.hidden_sum + total
