"""Computes nothing: lets the time pass that computing would take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evenflow.core.clock import VirtualClock
from evenflow.core.request import Request
from evenflow.execution.costs import CostModel, StepShape, shape_of
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult
from evenflow.simulation.prompts import answer_token
from evenflow.simulation.step_log import StepLog

GAP_RESOLUTION_S = 1e-6


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
        self._last: Sequence[Request] = ()
        self._last_s = 0.0
        self._left_out: dict[Request, float] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """Let the step's time pass; return a token for every request whose tokens end in it."""
        self._pass_time(shape_of(plan))
        if plan.num_tokens == len(plan.requests) and plan.requests == self._last:
            ended: Sequence[Request] = plan.requests
            token_ids = [answer_token(request.request_id) for request in ended]
        else:
            token_ids = [
                answer_token(request.request_id)
                if request.num_computed_tokens + count == len(request.token_ids)
                else NO_TOKEN
                for request, count in zip(plan.requests, plan.num_new_tokens, strict=True)
            ]
            ended = [r for r, id_ in zip(plan.requests, token_ids, strict=True) if id_ != NO_TOKEN]
        self._note_tokens(ended)
        return StepResult(token_ids)

    def coast(self, requests: Sequence[Request], max_steps: int, until_s: float) -> int:
        """Let steps pass in which each request gets one token, as long as they begin in time.

        Args:
            requests: all of them decode, and had a token in the step before.
            max_steps: most steps.
            until_s: no step begins then or later.

        Returns:
            The number of steps.
        """
        num_context_tokens = sum(len(request.token_ids) for request in requests)
        for number in range(max_steps):
            if self._clock.now_s() >= until_s:
                return number
            self._pass_time(StepShape((), len(requests), num_context_tokens))
            self._note_tokens(requests)
            num_context_tokens += len(requests)
        return max_steps

    @staticmethod
    def answer(request: Request, num_tokens: int) -> list[int]:
        """Return the next tokens of a request's answer."""
        return [answer_token(request.request_id)] * num_tokens

    def note_gap(self, seconds: float) -> None:
        """Count a gap that only a part of was spent here."""
        self.gaps[_ticks(seconds)] += 1

    def _pass_time(self, shape: StepShape) -> None:
        duration_s = self._costs.step_s(shape)
        self.num_steps += 1
        self.num_tokens += shape.num_tokens
        if self._log is not None:
            self._log.add(self._clock.now_s(), duration_s, shape)
        self._clock.advance(duration_s)

    def _note_tokens(self, requests: Sequence[Request]) -> None:
        """Count the gaps that end now."""
        now_s = self._clock.now_s()
        num_in_a_row = len(requests)
        if requests != self._last:
            before, now = set(self._last), set(requests)
            for request in before - now:
                if not request.is_finished:
                    self._left_out[request] = self._last_s
            for request in now - before:
                num_in_a_row -= 1
                last_s = self._left_out.pop(request, None)
                if last_s is not None:
                    self.gaps[_ticks(now_s - last_s)] += 1
            self._last = requests
        if num_in_a_row:
            self.gaps[_ticks(now_s - self._last_s)] += num_in_a_row
        self._last_s = now_s


def _ticks(seconds: float) -> int:
    return round(seconds / GAP_RESOLUTION_S)
