"""Runs a workload through the engine under a virtual clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable

from evenflow.core.errors import ContextLengthError
from evenflow.core.ids import DEFAULT_TENANT, TenantId
from evenflow.engine.explain import Explanation, explain
from evenflow.engine.outputs import Delta
from evenflow.execution.costs import CostModel
from evenflow.fairness.tenants import TenantDirectory
from evenflow.simulation.arrivals import Arrivals
from evenflow.simulation.instance import Instance, SimulationSettings
from evenflow.simulation.prompts import Prompts, answer_token
from evenflow.simulation.result import ResultBuilder, SimulationResult
from evenflow.workloads.priorities import PriorityFeed, RecordedPriorities, subject_of
from evenflow.workloads.request import WorkloadRequest

_PROGRESS_EVERY = 200  # requests that ended


def simulate(
    requests: Iterable[WorkloadRequest],
    settings: SimulationSettings,
    costs: CostModel,
    *,
    directory: TenantDirectory | None = None,
    log_steps: bool = False,
    explain_ids: Collection[str] = (),
    priorities: PriorityFeed | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> SimulationResult:
    """Serve a workload in virtual time.

    Args:
        requests: in order of arrival; read one by one, so they may be as many as one likes.
        settings: the engine.
        costs: how long its steps take.
        directory: limits of tenants.
        log_steps: keep `SimulationResult.steps`.
        explain_ids: requests to explain. They are called "0", "1", ... in order of arrival.
        priorities: what is said of the requests' priorities from outside, from its beginning.
        on_progress: called now and then with the number of requests that ended.

    Raises:
        InvalidRequestError: the workload is not in order of arrival.
    """
    instance = Instance(settings, costs, directory=directory, log_steps=log_steps)
    feed = RecordedPriorities(()) if priorities is None else priorities
    return _Simulation(requests, instance, frozenset(explain_ids), feed).run(on_progress)


class _Simulation:
    """The state of one run."""

    def __init__(
        self,
        requests: Iterable[WorkloadRequest],
        instance: Instance,
        explain_ids: frozenset[str],
        priorities: PriorityFeed,
    ) -> None:
        self._arrivals = Arrivals(requests)
        self._instance = instance
        self._prompts = Prompts()
        self._live: dict[str, WorkloadRequest] = {}
        self._explain_ids = explain_ids
        self._priorities = priorities
        self._explanations: dict[str, Explanation] = {}
        self._result = ResultBuilder()
        self._num_added = 0

    def run(self, on_progress: Callable[[int], None] | None) -> SimulationResult:
        """Serve everything."""
        began_s = time.perf_counter()
        instance, arrivals = self._instance, self._arrivals
        next_report = _PROGRESS_EVERY
        while True:
            for due_s, request in arrivals.take(instance.clock.now_s()):
                self._add(due_s, request)
            if instance.engine.has_work:
                self._change_priorities()
                until_s = min(arrivals.next_s, self._priorities.next_s)
                for delta in instance.advance(until_s, self._priorities.next_step):
                    self._end(delta)
            elif math.isinf(arrivals.next_s):
                break
            else:
                instance.clock.advance_to(arrivals.next_s)
            if on_progress is not None and len(self._result) >= next_report:
                on_progress(len(self._result))
                next_report = len(self._result) + _PROGRESS_EVERY
        wall_s = time.perf_counter() - began_s
        return self._result.build([instance], self._explanations, wall_s=wall_s)

    def _change_priorities(self) -> None:
        """Play the updates of priorities that are due."""
        feed, instance = self._priorities, self._instance
        num_steps, now_s = instance.executor.num_steps, instance.clock.now_s()
        if feed.next_step > num_steps and feed.next_s > now_s:
            return
        while feed.next_step <= num_steps or feed.next_s <= now_s:
            feed.update()
        for request_id, request in self._live.items():
            priority = feed.priority(subject_of(request, request_id))
            if priority is not None:
                instance.engine.set_priority(request_id, priority)

    def _add(self, due_s: float, request: WorkloadRequest) -> None:
        request_id = str(self._num_added)
        self._num_added += 1
        prompt = self._prompts.write(request, request_id)
        tenant_id = TenantId(request.tenant) if request.tenant else DEFAULT_TENANT
        priority = self._priorities.priority(subject_of(request, request_id))
        try:
            self._instance.add(
                request_id,
                prompt,
                request.num_output_tokens,
                priority=request.priority if priority is None else priority,
                tenant_id=tenant_id,
                arrival_s=due_s,
                session_id=request.session,
            )
        except ContextLengthError:
            self._result.reject(request_id, tenant_id, due_s, len(prompt))
            self._close_turn(request, request_id, 0)
            return
        self._live[request_id] = request

    def _end(self, delta: Delta) -> None:
        request_id, metrics = delta.request_id, delta.metrics
        if metrics is None or delta.finish_reason is None:
            return
        self._result.add(request_id, delta.finish_reason, metrics)
        if request_id in self._explain_ids:
            self._explanations[request_id] = explain(
                delta.events,
                request_id=request_id,
                tenant_id=metrics.tenant_id,
                status=delta.finish_reason,
                arrival_s=metrics.arrival_s,
            )
        self._close_turn(self._live.pop(request_id), request_id, metrics.num_output_tokens)

    def _close_turn(
        self, request: WorkloadRequest, request_id: str, num_output_tokens: int
    ) -> None:
        if request.session is not None:
            self._prompts.answer(request.session, answer_token(request_id), num_output_tokens)
            self._arrivals.answered(request.session, self._instance.clock.now_s())
