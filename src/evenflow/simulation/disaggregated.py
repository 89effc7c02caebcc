"""Prefill and decode on instances of their own, as in DistServe (arXiv 2401.09670).

    arrival ──▶ prefill instance ──first token──▶ link ──▶ decode instance ──▶ last token

Each instance is the engine with a clock of its own; the one that is furthest behind goes on. KV
that has crossed the link lies in the decode instance's prefix cache, where its scheduler finds it,
so nothing there knows about hand-overs. What does not fill a block is computed again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from evenflow.core.ids import DEFAULT_TENANT, TenantId
from evenflow.engine.outputs import Delta, RequestMetrics
from evenflow.execution.costs import CostModel
from evenflow.simulation.arrivals import Arrivals
from evenflow.simulation.instance import Instance, SimulationSettings
from evenflow.simulation.prompts import Prompts, answer_token
from evenflow.simulation.result import ResultBuilder, SimulationResult
from evenflow.workloads.request import WorkloadRequest


@dataclass(slots=True, frozen=True)
class InstancePool:
    """Instances of one role, all alike.

    Attributes:
        settings: how each is set up; decode instances must have prefix caching.
        costs: how long its steps take.
        count: how many there are.
    """

    settings: SimulationSettings
    costs: CostModel
    count: int = 1


@dataclass(slots=True, order=True)
class _Job:
    """A request on its way to an instance, or in it."""

    due_s: float
    number: int
    request: WorkloadRequest = field(compare=False)
    prompt: list[int] = field(compare=False)
    prefilled: RequestMetrics | None = field(compare=False, default=None)

    @property
    def num_output_tokens(self) -> int:
        """Tokens to be generated where it goes."""
        return 1 if self.prefilled is None else self.request.num_output_tokens - 1


class _Worker:
    """An instance and the requests that are on their way to it."""

    def __init__(self, pool: InstancePool) -> None:
        self.instance = Instance(pool.settings, pool.costs)
        self.jobs: dict[str, _Job] = {}
        self._coming: list[_Job] = []

    @property
    def load(self) -> int:
        """Prompt tokens of all it has to do."""
        return sum(len(job.prompt) for job in self.jobs.values())

    @property
    def next_s(self) -> float:
        """When it goes on; infinite if it has nothing to do."""
        now_s = self.instance.clock.now_s()
        if self.instance.engine.has_work:
            return now_s
        return max(now_s, self._coming[0].due_s) if self._coming else math.inf

    def send(self, job: _Job) -> None:
        """Let a request arrive when it is due."""
        self.jobs[str(job.number)] = job
        heappush(self._coming, job)

    def advance(self, until_s: float) -> list[Delta]:
        """Take in who has arrived, and go on."""
        self.instance.clock.advance_to(self.next_s)
        while self._coming and self._coming[0].due_s <= self.instance.clock.now_s():
            if not self._take(self._coming[0]):
                break
            heappop(self._coming)
        next_due_s = self._coming[0].due_s if self._coming else math.inf
        return self.instance.advance(min(until_s, next_due_s))

    def _take(self, job: _Job) -> bool:
        """Queue a request; with KV that it brings only if there is room for that now."""
        engine = self.instance.engine
        if job.prefilled is not None:
            scheduler = engine.scheduler
            kv = scheduler.kv
            # What those who wait have brought counts as available, too.
            num_waiting_blocks = sum(kv.blocks_for(r.num_tokens) for r in scheduler.waiting)
            num_needed_blocks = kv.blocks_for(len(job.prompt)) + len(scheduler.running)
            is_full = num_needed_blocks > kv.num_available_blocks - num_waiting_blocks
            if is_full and engine.has_work:
                return False
            kv.adopt(job.prompt)
        self.instance.add(
            str(job.number),
            job.prompt,
            job.num_output_tokens,
            priority=job.request.priority,
            tenant_id=TenantId(job.request.tenant) if job.request.tenant else DEFAULT_TENANT,
            arrival_s=job.due_s,
        )
        return True


def simulate_disaggregated(
    requests: Iterable[WorkloadRequest],
    prefill: InstancePool,
    decode: InstancePool,
    *,
    transfer_s: Callable[[int], float],
) -> SimulationResult:
    """Serve a workload of lone requests on two pools of instances.

    A request goes to the instance of the pool with the fewest prompt tokens to do. A decode
    instance takes one over when it has room for its prompt, and until then the request waits.

    Args:
        requests: in order of arrival, none of them in a session.
        prefill: computes prompts and first tokens.
        decode: computes the other tokens.
        transfer_s: seconds that the KV of so many tokens takes from one to the other.

    Raises:
        InvalidRequestError: the workload is not in order of arrival.
        ContextLengthError: a request is longer than the model allows.
    """
    return _Disaggregation(requests, prefill, decode, transfer_s).run()


class _Disaggregation:
    """The state of one run."""

    def __init__(
        self,
        requests: Iterable[WorkloadRequest],
        prefill: InstancePool,
        decode: InstancePool,
        transfer_s: Callable[[int], float],
    ) -> None:
        self._arrivals = Arrivals(requests)
        self._prompts = Prompts()
        self._prefillers = [_Worker(prefill) for _ in range(prefill.count)]
        self._decoders = [_Worker(decode) for _ in range(decode.count)]
        self._transfer_s = transfer_s
        self._result = ResultBuilder()
        self._num_requests = 0

    def run(self) -> SimulationResult:
        """Serve everything."""
        began_s = time.perf_counter()
        workers = self._prefillers + self._decoders
        while True:
            first, *others = sorted(workers, key=lambda worker: worker.next_s)
            arrival_s = self._arrivals.next_s
            if math.isinf(min(first.next_s, arrival_s)):
                break
            if arrival_s <= first.next_s:
                for due_s, request in self._arrivals.take(arrival_s):
                    self._dispatch(due_s, request)
                continue
            for delta in first.advance(min(arrival_s, others[0].next_s)):
                self._end(first, delta)
        wall_s = time.perf_counter() - began_s
        return self._result.build([worker.instance for worker in workers], {}, wall_s=wall_s)

    def _dispatch(self, due_s: float, request: WorkloadRequest) -> None:
        prompt = self._prompts.write(request, str(self._num_requests))
        _least_loaded(self._prefillers).send(_Job(due_s, self._num_requests, request, prompt))
        self._num_requests += 1

    def _end(self, worker: _Worker, delta: Delta) -> None:
        """A request has its first token, or all of them."""
        job, metrics = worker.jobs.pop(delta.request_id), delta.metrics
        if metrics is None or delta.finish_reason is None:
            return
        if job.prefilled is None and job.request.num_output_tokens > 1:
            prompt = [*job.prompt, answer_token(delta.request_id)]
            due_s = metrics.finished_s + self._transfer_s(len(job.prompt))
            handed_over = _Job(due_s, job.number, job.request, prompt, prefilled=metrics)
            _least_loaded(self._decoders).send(handed_over)
            return
        if job.prefilled is not None and metrics.first_token_s is not None:
            worker.instance.executor.note_gap(metrics.first_token_s - job.prefilled.finished_s)
        self._result.add(delta.request_id, delta.finish_reason, _whole(job.prefilled, metrics))


def _least_loaded(workers: Sequence[_Worker]) -> _Worker:
    return min(workers, key=lambda worker: worker.load)


def _whole(prefilled: RequestMetrics | None, last: RequestMetrics) -> RequestMetrics:
    """Return what happened to a request in both instances."""
    if prefilled is None:
        return last
    return replace(
        prefilled,
        finished_s=last.finished_s,
        num_output_tokens=1 + last.num_output_tokens,
        num_preemptions=prefilled.num_preemptions + last.num_preemptions,
    )
