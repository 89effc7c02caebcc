"""What a simulation found out, request by request."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evenflow.core.ids import TenantId
from evenflow.engine.engine import Engine
from evenflow.engine.explain import Explanation
from evenflow.engine.outputs import Delta
from evenflow.memory.kv_cache_manager import KVCacheManager, KVCacheStats
from evenflow.simulation.executor import GAP_RESOLUTION_S
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
        finish_reason: how it ended: "length", "timeout" or "rejected".
        itl_s: the times between successive tokens of a request that occurred, ascending.
        itl_counts: how often each did.
        duration_s: when the last request ended.
        wall_s: real seconds the simulation took.
        num_steps: steps of the engine.
        num_tokens: tokens these computed.
        peak_kv_blocks: most blocks in use at the end of a step.
        num_kv_blocks: blocks there were.
        preemption_counts: by (mode, reason, tenant).
        kv: the memory at the end.
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
    kv: KVCacheStats
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
    """Collects requests as they end.

    Args:
        steps: the log to be handed on.
    """

    def __init__(self, steps: StepLog | None) -> None:
        self._steps = steps
        self._floats = {name: array("d") for name in ("arrival_s", "first_token_s", "end_s")}
        names = ("prompt_tokens", "output_tokens", "cached_tokens", "preemptions")
        self._ints = {f"num_{name}": array("q") for name in names}
        self._numbers = array("q")
        self._tenants: list[str] = []
        self._reasons: list[str] = []
        self._peak_kv_blocks = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, delta: Delta) -> None:
        """Take in the last delta of a request."""
        metrics = delta.metrics
        if metrics is None:
            raise ValueError("the delta does not end its request")
        first_s = metrics.first_token_s
        self._append(
            int(delta.request_id),
            metrics.tenant_id,
            delta.finish_reason or "",
            arrival_s=metrics.arrival_s,
            first_token_s=np.nan if first_s is None else first_s,
            end_s=metrics.finished_s,
            num_prompt_tokens=metrics.num_prompt_tokens,
            num_output_tokens=metrics.num_output_tokens,
            num_cached_tokens=metrics.num_cached_tokens,
            num_preemptions=metrics.num_preemptions,
        )

    def reject(self, number: int, tenant: str, now_s: float, num_prompt_tokens: int) -> None:
        """Take in a request that was never served."""
        self._append(
            number,
            tenant,
            REJECTED,
            arrival_s=now_s,
            first_token_s=np.nan,
            end_s=now_s,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=0,
            num_cached_tokens=0,
            num_preemptions=0,
        )

    def note_peak(self, kv: KVCacheManager) -> None:
        """Look how much memory is in use."""
        used = kv.num_blocks - kv.num_available_blocks
        self._peak_kv_blocks = max(self._peak_kv_blocks, used)

    def build(
        self,
        engine: Engine,
        *,
        gaps: Counter[int],
        num_steps: int,
        num_tokens: int,
        explanations: Mapping[str, Explanation],
        duration_s: float,
        wall_s: float,
    ) -> SimulationResult:
        """Return the result.

        Args:
            engine: has served everything.
            gaps: how often each time between tokens occurred, in units of `GAP_RESOLUTION_S`.
            num_steps: steps it took.
            num_tokens: tokens they computed.
            explanations: those that were asked for.
            duration_s: virtual seconds.
            wall_s: real seconds.
        """
        ticks = sorted(gaps)
        order = np.argsort(self._numbers)
        columns = {**self._floats, **self._ints}
        return SimulationResult(
            **{name: np.array(values)[order] for name, values in columns.items()},
            tenant=[self._tenants[index] for index in order],
            finish_reason=[self._reasons[index] for index in order],
            itl_s=np.array(ticks, dtype=np.float64) * GAP_RESOLUTION_S,
            itl_counts=np.array([gaps[tick] for tick in ticks], dtype=np.int64),
            duration_s=duration_s,
            wall_s=wall_s,
            num_steps=num_steps,
            num_tokens=num_tokens,
            peak_kv_blocks=self._peak_kv_blocks,
            num_kv_blocks=engine.scheduler.kv.num_blocks,
            preemption_counts=dict(engine.scheduler.preemption_counts),
            kv=engine.scheduler.kv.stats(),
            steps=self._steps,
            explanations=explanations,
        )

    def _append(self, number: int, tenant: str, reason: str, **values: float) -> None:
        self._numbers.append(number)
        self._tenants.append(tenant)
        self._reasons.append(reason)
        for name, value in values.items():
            if name in self._floats:
                self._floats[name].append(value)
            else:
                self._ints[name].append(int(value))
