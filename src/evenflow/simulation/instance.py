"""One engine that is simulated, with a clock of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from evenflow.config.scheduler import check_step_budget
from evenflow.core.clock import VirtualClock
from evenflow.core.ids import TenantId
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.engine.outputs import Delta
from evenflow.execution.costs import CostModel
from evenflow.fairness.tenants import TenantDirectory
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.coasting import coast, coasting_steps
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from evenflow.simulation.executor import SimulatedExecutor
from evenflow.simulation.prompts import MAX_TOKEN_ID
from evenflow.simulation.step_log import StepLog


@dataclass(slots=True, frozen=True, kw_only=True)
class SimulationSettings:
    """The engine that is simulated, in the words of its flags.

    Attributes:
        num_blocks: KV blocks on the device.
        policy: name of the scheduling policy.
        max_num_seqs: most running requests.
        max_num_batched_tokens: token budget of a step.
        block_size: tokens per block.
        max_model_len: most tokens of prompt and output together, as far as the blocks hold them;
            longer prompts are rejected.
        enable_prefix_caching: whether the content of full blocks is found again.

    Raises:
        ConfigError: the token budget leaves nothing for prompts.
    """

    num_blocks: int
    policy: str = "fcfs"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    max_model_len: int = 32_768
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        check_step_budget(self.max_num_batched_tokens, self.max_num_seqs)

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


class Instance:
    """An engine in virtual time.

    Args:
        settings: how it is set up.
        costs: how long its steps take.
        directory: limits of tenants.
        log_steps: keep `log`.

    Attributes:
        engine: the engine.
        clock: its time.
        executor: what it computes with.
        log: its steps, if they are logged.
        peak_kv_blocks: most blocks in use at the end of a step.
    """

    def __init__(
        self,
        settings: SimulationSettings,
        costs: CostModel,
        *,
        directory: TenantDirectory | None = None,
        log_steps: bool = False,
    ) -> None:
        scheduler = settings.build_scheduler(directory)
        # What does not fit even into all blocks would wait for ever.
        num_kv_tokens = settings.num_blocks * settings.block_size
        limits = ModelLimits(min(settings.max_model_len, num_kv_tokens), MAX_TOKEN_ID + 1)
        self.clock = VirtualClock()
        self.log = StepLog(scheduler) if log_steps else None
        self.executor = SimulatedExecutor(costs, self.clock, self.log)
        self.engine = Engine(scheduler, self.executor, self.clock, limits, only_ends=True)
        self.peak_kv_blocks = 0

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        num_output_tokens: int,
        *,
        priority: int,
        tenant_id: TenantId,
        arrival_s: float,
    ) -> None:
        """Queue a request.

        Raises:
            ContextLengthError: it is longer than the model allows.
        """
        self.engine.add_request(
            request_id,
            prompt_token_ids,
            _params(max(1, num_output_tokens)),
            priority=priority,
            tenant_id=tenant_id,
            arrival_s=arrival_s,
        )

    def advance(self, until_s: float) -> list[Delta]:
        """Take a step, and those after it in which nothing can change.

        Args:
            until_s: something may come from outside then; only the first step may begin later.

        Returns:
            The last deltas of the requests that ended.
        """
        engine = self.engine
        deltas = engine.step()
        max_steps = coasting_steps(engine.scheduler)
        if max_steps:
            running = engine.scheduler.running
            num_steps = self.executor.coast(running, max_steps, min(until_s, engine.next_expiry_s))
            coast(engine.scheduler, num_steps, self.executor.answer)
        kv = engine.scheduler.kv
        self.peak_kv_blocks = max(self.peak_kv_blocks, kv.num_blocks - kv.num_available_blocks)
        return deltas


@cache
def _params(num_output_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_output_tokens, ignore_eos=True)
