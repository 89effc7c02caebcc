"""A small engine without a model, for tests of decisions."""

from __future__ import annotations

from zlib import crc32

from evenflow.core.clock import VirtualClock
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.executor import ScriptedExecutor
from evenflow.fairness.tenants import TenantDirectory
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.residency import Residency
from evenflow.scheduling.plan import StepPlan, StepResult
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from evenflow.scheduling.switching import SwitchOptions

VOCAB_SIZE = 1000


def scripted_token(request_id: str, length: int) -> int:
    """Return the token that the scripted model gives a request at a length."""
    return (crc32(request_id.encode()) + length) % VOCAB_SIZE


class RecordingExecutor(ScriptedExecutor):
    """Remembers what it was asked to do, step by step, as {request id: tokens}."""

    def __init__(self) -> None:
        super().__init__(scripted_token)
        self.steps: list[dict[str, int]] = []

    def execute(self, plan: StepPlan) -> StepResult:
        self.steps.append(
            dict(zip((r.request_id for r in plan.requests), plan.num_new_tokens, strict=True))
        )
        return super().execute(plan)


def make_engine(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 32,
    policy: str = "fcfs",
    max_model_len: int = 128,
    enable_prefix_caching: bool = True,
    eos_token_ids: frozenset[int] = frozenset(),
    directory: TenantDirectory | None = None,
    clock: VirtualClock | None = None,
    residency: Residency | None = None,
    switching: SwitchOptions | None = None,
) -> tuple[Engine, RecordingExecutor]:
    kv = KVCacheManager(
        num_blocks,
        block_size,
        enable_prefix_caching=enable_prefix_caching,
        residency=residency,
    )
    scheduler = Scheduler(
        load_policy(policy),
        kv,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        directory=directory,
        switching=switching,
    )
    executor = RecordingExecutor()
    limits = ModelLimits(max_model_len, VOCAB_SIZE, eos_token_ids)
    return Engine(scheduler, executor, clock or VirtualClock(), limits), executor
