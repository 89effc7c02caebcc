"""What a simulation found out, request by request."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evenflow.core.ids import TenantId
from evenflow.engine.explain import Explanation
from evenflow.engine.outputs import RequestMetrics
from evenflow.memory.kv_cache_stats import KVCacheStats
from evenflow.simulation.executor import GAP_RESOLUTION_S
from evenflow.simulation.instance import Instance
from evenflow.simulation.step_log import StepLog

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

REJECTED = "rejected"
"""The finish reason of a request that was longer than the model allows."""


@dataclass(slots=True, frozen=True, kw_only=True)
class SimulationResult:
    """What became of each request, and of the engine. Times are virtual seconds from the start.

    Arrays and lists have one entry per request, in order of arrival.

    Attributes:
        arrival_s: when it came.
        first_token_s: when it had its first token, nan if never.
        end_s: when it ended.
        num_prompt_tokens: length of its prompt, the conversation before included.
        num_output_tokens: length of its answer.
        num_cached_tokens: prompt tokens found in the prefix cache.
        num_preemptions: times it lost its memory.
        tenant: whose it was.
        finish_reason: how it ended: "length" or "rejected".
        itl_s: the times between successive tokens of a request that occurred, ascending.
        itl_counts: how often each did.
        duration_s: when the last request ended.
        wall_s: real seconds the simulation took.
        num_steps: steps of the engine.
        num_tokens: tokens these computed.
        peak_kv_blocks: most blocks in use at the end of a step; the sum over instances.
        num_kv_blocks: blocks there were.
        preemption_counts: by (mode, reason, tenant).
        num_bytes_moved: bytes of KV that were copied between tiers.
        switch_stall_s: seconds for which steps waited for such copies.
        kv: the memory of each instance at the end.
        steps: the steps one by one, if they were logged.
        explanations: by request id, of those that were asked for.
    """

    arrival_s: Floats
    first_token_s: Floats
    end_s: Floats
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    num_cached_tokens: Ints
    num_preemptions: Ints
    tenant: Sequence[str]
    finish_reason: Sequence[str]
    itl_s: Floats
    itl_counts: Ints
    duration_s: float
    wall_s: float
    num_steps: int
    num_tokens: int
    peak_kv_blocks: int
    num_kv_blocks: int
    preemption_counts: Mapping[tuple[str, str, TenantId], int]
    num_bytes_moved: int
    switch_stall_s: float
    kv: Sequence[KVCacheStats]
    steps: StepLog | None
    explanations: Mapping[str, Explanation]

    @property
    def ttft_s(self) -> Floats:
        """Times to first token of the requests that had one."""
        return (self.first_token_s - self.arrival_s)[~np.isnan(self.first_token_s)]

    @property
    def tpot_s(self) -> Floats:
        """Times per output token after the first, of the requests that had two or more."""
        several = self.num_output_tokens > 1
        decode_s = (self.end_s - self.first_token_s)[several]
        return np.asarray(decode_s / (self.num_output_tokens[several] - 1))


class ResultBuilder:
    """Collects requests as they end."""

    def __init__(self) -> None:
        self._floats = {name: array("d") for name in ("arrival_s", "first_token_s", "end_s")}
        names = ("prompt_tokens", "output_tokens", "cached_tokens", "preemptions")
        self._ints = {f"num_{name}": array("q") for name in names}
        self._numbers = array("q")
        self._tenants: list[str] = []
        self._reasons: list[str] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, request_id: str, finish_reason: str, metrics: RequestMetrics) -> None:
        """Take in a request that has ended."""
        first_s = metrics.first_token_s
        self._numbers.append(int(request_id))
        self._tenants.append(metrics.tenant_id)
        self._reasons.append(finish_reason)
        self._floats["arrival_s"].append(metrics.arrival_s)
        self._floats["first_token_s"].append(math.nan if first_s is None else first_s)
        self._floats["end_s"].append(metrics.finished_s)
        for name, values in self._ints.items():
            values.append(getattr(metrics, name))

    def reject(
        self, request_id: str, tenant_id: TenantId, arrival_s: float, num_prompt_tokens: int
    ) -> None:
        """Take in a request that was never served."""
        metrics = RequestMetrics(arrival_s, None, arrival_s, 0, 0, 0, num_prompt_tokens, tenant_id)
        self.add(request_id, REJECTED, metrics)

    def build(
        self,
        instances: Sequence[Instance],
        explanations: Mapping[str, Explanation],
        *,
        wall_s: float,
    ) -> SimulationResult:
        """Return the result.

        Args:
            instances: have served everything. Memory and steps are those of all together, and the
                log is the first one's.
            explanations: those that were asked for.
            wall_s: real seconds.
        """
        gaps: Counter[int] = Counter()
        preemptions: Counter[tuple[str, str, TenantId]] = Counter()
        for instance in instances:
            gaps.update(instance.executor.gaps)
            preemptions.update(instance.engine.scheduler.preemption_counts)
        ticks = sorted(gaps)
        order = np.argsort(self._numbers)
        columns = {**self._floats, **self._ints}
        return SimulationResult(
            **{name: np.array(values)[order] for name, values in columns.items()},
            tenant=[self._tenants[index] for index in order],
            finish_reason=[self._reasons[index] for index in order],
            itl_s=np.array(ticks, dtype=np.float64) * GAP_RESOLUTION_S,
            itl_counts=np.array([gaps[tick] for tick in ticks], dtype=np.int64),
            duration_s=max(self._floats["end_s"], default=0.0),
            wall_s=wall_s,
            num_steps=sum(instance.executor.num_steps for instance in instances),
            num_tokens=sum(instance.executor.num_tokens for instance in instances),
            peak_kv_blocks=sum(instance.peak_kv_blocks for instance in instances),
            num_kv_blocks=sum(instance.engine.scheduler.kv.num_blocks for instance in instances),
            preemption_counts=dict(preemptions),
            num_bytes_moved=sum(
                residency.num_bytes_moved
                for instance in instances
                if (residency := instance.engine.scheduler.kv.residency) is not None
            ),
            switch_stall_s=sum(
                sum(instance.engine.scheduler.switcher.stall_s.values()) for instance in instances
            ),
            kv=[instance.engine.scheduler.kv.stats() for instance in instances],
            steps=instances[0].log,
            explanations=explanations,
        )
