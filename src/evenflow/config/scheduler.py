"""The step: who runs, and how much of it."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from evenflow.config.area import Area
from evenflow.core.errors import ConfigError


class SchedulerConfig(Area):
    """Policy and budgets of a step."""

    table: ClassVar[str] = "scheduler"

    scheduling_policy: str = Field(default="fcfs", min_length=1)
    """Name of the policy that ranks requests, built in (fcfs, priority, vtc, fair) or installed as
    an `evenflow.policies` entry point."""

    max_num_seqs: int = Field(default=128, ge=1)
    """Most requests that run at once."""

    max_num_batched_tokens: int = Field(default=256, ge=2)
    """Most tokens in one step; must exceed --max-num-seqs. Larger steps finish prompts sooner,
    smaller ones delay running requests less."""

    preemption_mode: Literal["auto", "swap", "recompute"] = "auto"
    """What becomes of the KV of a request that loses its place: copied to the host and loaded again
    (swap), computed again (recompute), or what takes less time by measurement (auto)."""

    swap_timing: Literal["auto", "beside", "between"] = "auto"
    """When KV is copied: beside the steps, between them, or what costs less by measurement. On a
    CPU a copy takes the cores that compute; on a GPU it need not hold up anybody."""

    swap_write_back: bool = True
    """Copy full blocks of running requests to the host while the link is idle, so that a request
    that loses its place has little left to copy. Begins when half of the KV memory is in use, or at
    once with --kv-disk-path."""

    swap_keep_head: bool = True
    """Leave the blocks of a request that lost its place on the device until the room is needed,
    from its end on."""

    swap_prefetch: bool = True
    """Load blocks of the request that is next before there is a place for it, while the link is
    idle."""

    max_switch_share: float = Field(default=0.1, gt=0)
    """Most of the time that taking running requests off the device for others that outrank them
    may cost; also bounds how soon each of them may lose its place again."""

    max_num_queued_reqs: int = Field(default=1024, ge=1)
    """Most requests that a server lets wait for their first step; it refuses further ones with
    status 429. The default lets a thousand clients connect at once."""

    max_num_queued_tokens: int | None = Field(default=None, ge=1)
    """Most prompt tokens of waiting requests; bounds the wait, and the memory they take, better
    than their number does."""

    tenant_max_running: int | None = Field(default=None, ge=1)
    """Most completions of one tenant that run at once, unless the keys file says otherwise."""

    tenant_max_queued_requests: int | None = Field(default=None, ge=1)
    """Most waiting requests of one tenant, unless the keys file says otherwise."""

    tenant_max_queued_tokens: int | None = Field(default=None, ge=1)
    """Most prompt tokens of one tenant's waiting requests, unless the keys file says otherwise."""

    tenant_tokens_per_minute: int | None = Field(default=None, ge=1)
    """Most prompt and output tokens of one tenant in a minute, unless the keys file says
    otherwise."""

    max_num_strangers: int = Field(default=128, ge=0)
    """Tenants told apart beyond those in the keys file; further names share the tenant `other`."""

    @model_validator(mode="after")
    def _leave_room_for_prefill(self) -> Self:
        check_step_budget(self.max_num_batched_tokens, self.max_num_seqs)
        return self


def check_step_budget(max_num_batched_tokens: int, max_num_seqs: int) -> None:
    """Check that a step has tokens left when every running request has taken one.

    Raises:
        ConfigError: it has none.
    """
    if max_num_batched_tokens <= max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens ({max_num_batched_tokens}) must exceed "
            f"max_num_seqs ({max_num_seqs})",
            why="each of max_num_seqs running requests may take one token of a step, and a "
            "prompt would then never be computed",
            fix=f"Set --max-num-batched-tokens to {max_num_seqs + 1} or more, or "
            f"--max-num-seqs to {max_num_batched_tokens - 1} or less",
        )
