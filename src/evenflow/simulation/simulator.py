"""Runs a workload through the engine under a virtual clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache

from evenflow.core.clock import VirtualClock
from evenflow.core.errors import ContextLengthError
from evenflow.core.ids import DEFAULT_TENANT, TenantId
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.explain import Explanation, explain
from evenflow.engine.limits import ModelLimits
from evenflow.engine.outputs import Delta
from evenflow.execution.costs import CostModel
from evenflow.fairness.tenants import TenantDirectory
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.coasting import coast, coasting_steps
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from evenflow.simulation.arrivals import Arrivals
from evenflow.simulation.executor import SimulatedExecutor
from evenflow.simulation.prompts import MAX_TOKEN_ID, Prompts, answer_token
from evenflow.simulation.result import ResultBuilder, SimulationResult
from evenflow.simulation.step_log import StepLog
from evenflow.workloads.request import WorkloadRequest

_PROGRESS_EVERY = 200  # requests that ended


@dataclass(slots=True, frozen=True, kw_only=True)
class SimulationSettings:
    """The engine that is simulated, in the words of its flags.

    Attributes:
        num_blocks: KV blocks on the device.
        policy: name of the scheduling policy.
        max_num_seqs: most running requests.
        max_num_batched_tokens: token budget of a step.
        block_size: tokens per block.
        max_model_len: most tokens of prompt and output together; longer prompts are rejected.
        enable_prefix_caching: whether the content of full blocks is found again.
    """

    num_blocks: int
    policy: str = "fcfs"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    max_model_len: int = 32_768
    enable_prefix_caching: bool = True

    def build_scheduler(self, directory: TenantDirectory | None = None) -> Scheduler:
        """Build the scheduler with its KV memory."""
        return Scheduler(
            load_policy(self.policy),
            KVCacheManager(
                self.num_blocks,
                self.block_size,
                enable_prefix_caching=self.enable_prefix_caching,
            ),
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            directory=directory,
        )


def simulate(
    requests: Iterable[WorkloadRequest],
    settings: SimulationSettings,
    costs: CostModel,
    *,
    directory: TenantDirectory | None = None,
    log_steps: bool = False,
    explain_ids: Collection[str] = (),
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
        on_progress: called now and then with the number of requests that ended.

    Raises:
        InvalidRequestError: the workload is not in order of arrival.
    """
    return _Simulation(requests, settings, costs, directory, log_steps, explain_ids).run(
        on_progress
    )


class _Simulation:
    """The state of one run."""

    def __init__(
        self,
        requests: Iterable[WorkloadRequest],
        settings: SimulationSettings,
        costs: CostModel,
        directory: TenantDirectory | None,
        log_steps: bool,
        explain_ids: Collection[str],
    ) -> None:
        self._clock = VirtualClock()
        self._arrivals = Arrivals(requests)
        self._prompts = Prompts()
        scheduler = settings.build_scheduler(directory)
        log = StepLog(scheduler) if log_steps else None
        self._executor = SimulatedExecutor(costs, self._clock, log)
        limits = ModelLimits(settings.max_model_len, MAX_TOKEN_ID + 1)
        self._engine = Engine(scheduler, self._executor, self._clock, limits)
        self._live: dict[str, WorkloadRequest] = {}
        self._explain_ids = frozenset(explain_ids)
        self._explanations: dict[str, Explanation] = {}
        self._result = ResultBuilder(log)
        self._num_added = 0

    def run(self, on_progress: Callable[[int], None] | None) -> SimulationResult:
        """Serve everything."""
        began_s = time.perf_counter()
        engine, clock, arrivals = self._engine, self._clock, self._arrivals
        next_report = _PROGRESS_EVERY
        while True:
            for due_s, request in arrivals.take(clock.now_s()):
                self._add(due_s, request)
            if engine.has_work:
                for delta in engine.step():
                    if delta.finish_reason is not None:
                        self._end(delta)
                self._coast()
            elif math.isinf(arrivals.next_s):
                break
            else:
                clock.advance_to(arrivals.next_s)
            self._result.note_peak(engine.scheduler.kv)
            if on_progress is not None and len(self._result) >= next_report:
                on_progress(len(self._result))
                next_report = len(self._result) + _PROGRESS_EVERY
        executor = self._executor
        return self._result.build(
            engine,
            gaps=executor.gaps,
            num_steps=executor.num_steps,
            num_tokens=executor.num_tokens,
            explanations=self._explanations,
            duration_s=clock.now_s(),
            wall_s=time.perf_counter() - began_s,
        )

    def _coast(self) -> None:
        """Take the steps together in which nothing can change."""
        scheduler = self._engine.scheduler
        max_steps = coasting_steps(scheduler)
        if max_steps > 0:
            until_s = min(self._arrivals.next_s, self._engine.next_expiry_s)
            num_steps = self._executor.coast(scheduler.running, max_steps, until_s)
            coast(scheduler, num_steps, self._executor.answer)

    def _add(self, due_s: float, request: WorkloadRequest) -> None:
        request_id = str(self._num_added)
        self._num_added += 1
        prompt = self._prompts.write(request, request_id)
        tenant_id = TenantId(request.tenant) if request.tenant else DEFAULT_TENANT
        try:
            self._engine.add_request(
                request_id,
                prompt,
                _params(max(1, request.num_output_tokens)),
                priority=request.priority,
                tenant_id=tenant_id,
                arrival_s=due_s,
            )
        except ContextLengthError:
            self._result.reject(self._num_added - 1, tenant_id, due_s, len(prompt))
            self._close_turn(request, request_id, 0)
            return
        self._live[request_id] = request

    def _end(self, delta: Delta) -> None:
        self._result.add(delta)
        if delta.request_id in self._explain_ids and delta.metrics is not None:
            self._explanations[delta.request_id] = explain(
                delta.events,
                request_id=delta.request_id,
                tenant_id=delta.metrics.tenant_id,
                status=delta.finish_reason or "",
                arrival_s=delta.metrics.arrival_s,
            )
        num_output_tokens = delta.metrics.num_output_tokens if delta.metrics else 0
        self._close_turn(self._live.pop(delta.request_id), delta.request_id, num_output_tokens)

    def _close_turn(
        self, request: WorkloadRequest, request_id: str, num_output_tokens: int
    ) -> None:
        if request.session is not None:
            self._prompts.answer(request.session, answer_token(request_id), num_output_tokens)
            self._arrivals.answered(request.session, self._clock.now_s())


@cache
def _params(num_output_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_output_tokens, ignore_eos=True)
