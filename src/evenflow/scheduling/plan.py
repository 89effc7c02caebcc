"""What the scheduler hands to an executor, and what it gets back."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from evenflow.core.ids import BlockId, RequestId
from evenflow.core.request import Request
from evenflow.core.status import RequestStatus
from evenflow.memory.block_table import BlockTable

_V = TypeVar("_V")


@dataclass(slots=True, frozen=True)
class StepPlan:
    """The work of one step.

    Attributes:
        requests: who computes, in batch order.
        num_new_tokens: for each, how many tokens from `num_computed_tokens` on.
        tables: for each, its block table.
        copies: (source, destination) blocks to copy before anything is computed.
        started: requests that run for the first time from this step on.
        coasting: requests that compute one token each beside those listed.
        num_coasting_tokens: tokens of theirs that have KV before the step, summed.
        follows: the step starts before the one before it has been taken in, and each request
            computes the token that it samples there, whatever that will be.
    """

    requests: list[Request]
    num_new_tokens: list[int]
    tables: list[BlockTable]
    copies: list[tuple[BlockId, BlockId]] = field(default_factory=list)
    started: list[RequestId] = field(default_factory=list)
    coasting: Set[Request] = frozenset()
    num_coasting_tokens: int = 0
    follows: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes."""
        return sum(self.num_new_tokens) + len(self.coasting)

    @property
    def starts(self) -> list[int]:
        """For each request, the position of the first token it computes, as the step starts."""
        if self.follows:
            return [len(request.token_ids) for request in self.requests]
        return [request.num_computed_tokens for request in self.requests]


NO_WORK = StepPlan([], [], [])
"""The plan of a step in which nothing runs."""


@dataclass(slots=True, frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position, from the model's unmodified logits.

    Attributes:
        token_id: the token that stands there.
        logprob: its natural log-probability.
        rank: 1 for the likeliest token.
        top: the likeliest (token id, logprob) pairs, best first.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


NO_TOKEN = -1
"""Stands in `StepResult.token_ids` for a request that got none: its prefill is not done, or it is
for an embedding."""


@dataclass(slots=True, frozen=True)
class StepResult:
    """What came out of a step. Indices are positions in `StepPlan.requests`.

    Attributes:
        token_ids: the sampled token of each request, or NO_TOKEN.
        logprobs: of sampled tokens, for requests that asked.
        prompt_logprobs: of the prompt tokens predicted in this step, for requests that asked.
        hidden_sums: `Request.hidden_sum` with this step's tokens, for requests with `pooling`.
        failures: requests that cannot go on, with the reason in words.
        completed: requests whose grammar lets nothing follow the sampled token.
    """

    token_ids: list[int]
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    hidden_sums: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    completed: list[int] = field(default_factory=list)


def of_running(plan: StepPlan, result: StepResult) -> tuple[StepPlan, StepResult]:
    """Leave out of a step, and of what came out of it, whoever does not run any more."""
    rows = [
        index
        for index, request in enumerate(plan.requests)
        if request.status is RequestStatus.RUNNING
    ]
    if len(rows) == len(plan.requests):
        return plan, result
    place = {index: row for row, index in enumerate(rows)}
    return (
        replace(
            plan,
            requests=[plan.requests[index] for index in rows],
            num_new_tokens=[plan.num_new_tokens[index] for index in rows],
            tables=[plan.tables[index] for index in rows],
        ),
        StepResult(
            [result.token_ids[index] for index in rows],
            _moved(result.logprobs, place),
            _moved(result.prompt_logprobs, place),
            _moved(result.hidden_sums, place),
            _moved(result.failures, place),
            [place[index] for index in result.completed if index in place],
        ),
    )


def _moved(values: Mapping[int, _V], place: Mapping[int, int]) -> dict[int, _V]:
    return {place[index]: value for index, value in values.items() if index in place}
