"""One engine that is simulated, with a clock of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
from evenflow.scheduling.coasting import Coast
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from evenflow.scheduling.switching import SwitchOptions
from evenflow.simulation.executor import SimulatedExecutor
from evenflow.simulation.links import HostMemory
from evenflow.simulation.prompts import MAX_TOKEN_ID
from evenflow.simulation.step_log import StepLog
from evenflow.workloads.priorities import NEVER_STEP

_SESSION_TTL_S = 3600.0
"""How long a session's KV is kept between turns, unless the room is needed."""


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
        host: memory of the host for copies of KV; None for none.
        switching: how requests leave the device and come back.

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
    host: HostMemory | None = None
    switching: SwitchOptions = field(default_factory=SwitchOptions)

    def __post_init__(self) -> None:
        check_step_budget(self.max_num_batched_tokens, self.max_num_seqs)

    def build_scheduler(
        self, clock: VirtualClock, directory: TenantDirectory | None = None
    ) -> Scheduler:
        """Build the scheduler with its KV memory, and a host whose links follow a clock."""
        return Scheduler(
            load_policy(self.policy),
            KVCacheManager(
                self.num_blocks,
                self.block_size,
                enable_prefix_caching=self.enable_prefix_caching,
                residency=None if self.host is None else self.host.build(clock),
            ),
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            directory=directory,
            switching=self.switching,
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
        self.clock = VirtualClock()
        scheduler = settings.build_scheduler(self.clock, directory)
        # What does not fit even into all blocks would wait for ever.
        num_kv_tokens = settings.num_blocks * settings.block_size
        limits = ModelLimits(min(settings.max_model_len, num_kv_tokens), MAX_TOKEN_ID + 1)
        self.log = StepLog(scheduler) if log_steps else None
        self.executor = SimulatedExecutor(costs, self.clock, self.log)
        self.engine = Engine(scheduler, self.executor, self.clock, limits, only_ends=True)
        self.peak_kv_blocks = 0
        self._coast = Coast(scheduler)

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        num_output_tokens: int,
        *,
        priority: int,
        tenant_id: TenantId,
        arrival_s: float,
        session_id: str | None = None,
    ) -> None:
        """Queue a request.

        Args:
            request_id: names it.
            prompt_token_ids: its prompt.
            num_output_tokens: after which it ends.
            priority: lower is earlier, under the priority policy.
            tenant_id: whom it is for.
            arrival_s: when it came.
            session_id: whose next turn it is; with a host, its KV is kept there afterwards.

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
            session_id=self._open(tenant_id, session_id),
        )

    def advance(self, until_s: float, until_step: int = NEVER_STEP) -> list[Delta]:
        """Take a step, or several that are alike up to one in which somebody ends.

        Args:
            until_s: something may come from outside then; only the first step may begin later.
            until_step: something comes from outside after so many steps, which are still to come.

        Returns:
            The last deltas of the requests that ended.
        """
        deltas = self._take_equal_steps(min(until_s, self.engine.next_expiry_s), until_step)
        return self._step() if deltas is None else deltas

    def _open(self, tenant_id: TenantId, session_id: str | None) -> str | None:
        """Return the session if turns are kept, having opened it if it is new."""
        if session_id is None or self.engine.scheduler.kv.residency is None:
            return None
        sessions = self.engine.sessions
        if not sessions.has(tenant_id, session_id):
            sessions.open(tenant_id, _SESSION_TTL_S, session_id)
        return session_id

    def _take_equal_steps(self, until_s: float, until_step: int) -> list[Delta] | None:
        """Coast; return None if the next step is not like the last, or begins too late."""
        coast, executor = self._coast, self.executor
        max_steps = min(coast.max_steps(), until_step - executor.num_steps)
        num_steps = max_steps and executor.coast(
            len(self.engine.scheduler.running), coast.num_context_tokens, max_steps, until_s
        )
        if not num_steps:
            return None
        ended = coast.take(num_steps, self.clock.now_s())
        self.peak_kv_blocks = max(self.peak_kv_blocks, coast.peak_blocks)
        return self.engine.report(ended)

    def _step(self) -> list[Delta]:
        """Take a single step."""
        engine = self.engine
        self._coast.begin_single()
        deltas = engine.step()
        deltas += engine.report(self._coast.end_single(self.clock.now_s()))
        kv = engine.scheduler.kv
        self.peak_kv_blocks = max(self.peak_kv_blocks, kv.num_blocks - kv.num_available_blocks)
        return deltas


@cache
def _params(num_output_tokens: int) -> SamplingParams:
    # Nobody draws, and a seed that is given need not be derived.
    return SamplingParams(max_tokens=num_output_tokens, ignore_eos=True, seed=0)
