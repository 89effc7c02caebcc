"""Computes nothing: lets the time pass that computing would take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

import numpy as np

from evenflow.core.clock import VirtualClock
from evenflow.core.request import Request
from evenflow.execution.costs import CostModel, StepShape, shape_of
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult
from evenflow.simulation.prompts import answer_token
from evenflow.simulation.step_log import StepLog

GAP_RESOLUTION_S = 1e-6

_FEW_STEPS = 4
"""So many steps are priced sooner one by one than together."""


class SimulatedExecutor:
    """Advances a clock by what a cost model says. All tokens of an answer are alike.

    Args:
        costs: how long a step takes.
        clock: the engine's.
        log: remembers steps, if wanted.

    Attributes:
        gaps: how often the time between two successive tokens of a request was so many
            `GAP_RESOLUTION_S`.
        num_steps: steps so far.
        num_tokens: tokens they computed.
    """

    def __init__(self, costs: CostModel, clock: VirtualClock, log: StepLog | None = None) -> None:
        self.gaps: Counter[int] = Counter()
        self.num_steps = 0
        self.num_tokens = 0
        self._costs = costs
        self._clock = clock
        self._log = log
        # Who got a token last, when that was, and when those did who got none since.
        self._last: Set[Request] = frozenset()
        self._last_s = 0.0
        self._left_out: dict[Request, float] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """Let the step's time pass; return a token for every request whose tokens end in it."""
        shape = shape_of(plan)
        duration_s = self._costs.step_s(shape)
        if self._log is not None:
            self._log.add(self._clock.now_s(), duration_s, shape)
        self._clock.advance(duration_s)
        self.num_steps += 1
        self.num_tokens += shape.num_tokens
        token_ids = [
            answer_token(request.request_id)
            if request.num_computed_tokens + count == len(request.token_ids)
            else NO_TOKEN
            for request, count in zip(plan.requests, plan.num_new_tokens, strict=True)
        ]
        pairs = zip(plan.requests, token_ids, strict=True)
        self._note_tokens(plan.coasting | {request for request, id_ in pairs if id_ != NO_TOKEN})
        return StepResult(token_ids)

    def coast(
        self, num_decodes: int, num_context_tokens: int, max_steps: int, until_s: float
    ) -> int:
        """Let steps pass in which each request gets one token, as long as they begin in time.

        Args:
            num_decodes: requests; those that had a token in the step before and did not end.
            num_context_tokens: KV entries that they read in the first step.
            max_steps: most steps.
            until_s: no step begins then or later.

        Returns:
            The number of steps; if they become shorter, more may follow.
        """
        log, gaps = self._log, self.gaps
        now_s = self._clock.now_s()
        num_steps = 0
        for duration_s in self._price(num_decodes, num_context_tokens, max_steps, until_s - now_s):
            if now_s >= until_s:
                break
            if log is not None:
                log.add(now_s, duration_s, StepShape((), num_decodes, num_context_tokens))
                num_context_tokens += num_decodes
            now_s += duration_s
            gaps[_ticks(now_s - self._last_s)] += num_decodes
            self._last_s = now_s
            num_steps += 1
        self._clock.advance_to(now_s)
        self.num_steps += num_steps
        self.num_tokens += num_steps * num_decodes
        return num_steps

    def _price(
        self, num_decodes: int, num_context_tokens: int, max_steps: int, within_s: float
    ) -> list[float]:
        """Return how long the steps of a coast take, as many as may begin within some time.

        Their number is a guess from the first one, the shortest of a coast in any sound model.
        """
        first_s = self._costs.step_s(StepShape((), num_decodes, num_context_tokens))
        if max_steps * first_s > within_s:
            max_steps = 1 + int(within_s / first_s)
        stop = num_context_tokens + max_steps * num_decodes
        if max_steps > _FEW_STEPS:
            contexts = np.arange(num_context_tokens, stop, num_decodes)
            prices: list[float] = self._costs.decode_steps_s(num_decodes, contexts).tolist()
            return prices
        others = range(num_context_tokens + num_decodes, stop, num_decodes)
        step_s = self._costs.step_s
        return [first_s, *[step_s(StepShape((), num_decodes, context)) for context in others]]

    def note_gap(self, seconds: float) -> None:
        """Count a gap that only a part of was spent here."""
        self.gaps[_ticks(seconds)] += 1

    def _note_tokens(self, requests: Set[Request]) -> None:
        """Count the gaps that end now."""
        now_s = self._clock.now_s()
        for request in self._last - requests:
            if not request.is_finished:
                self._left_out[request] = self._last_s
        others = requests - self._last
        for request in others:
            last_s = self._left_out.pop(request, None)
            if last_s is not None:
                self.gaps[_ticks(now_s - last_s)] += 1
        if len(others) < len(requests):
            self.gaps[_ticks(now_s - self._last_s)] += len(requests) - len(others)
        self._last, self._last_s = requests, now_s


def _ticks(seconds: float) -> int:
    return round(seconds / GAP_RESOLUTION_S)
