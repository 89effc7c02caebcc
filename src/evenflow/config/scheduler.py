"""The step: who runs, and how much of it."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from evenflow.config.area import Area
from evenflow.core.errors import ConfigError


class SchedulerConfig(Area):
    """Policy and budgets of a step."""

    table: ClassVar[str] = "scheduler"

    scheduling_policy: str = Field(default="fcfs", min_length=1)
    """Name of the policy that ranks requests, built in (fcfs, priority) or installed as an
    `evenflow.policies` entry point."""

    max_num_seqs: int = Field(default=128, ge=1)
    """Most requests that run at once."""

    max_num_batched_tokens: int = Field(default=256, ge=2)
    """Most tokens in one step; must exceed --max-num-seqs. Larger steps finish prompts sooner,
    smaller ones delay running requests less."""

    @model_validator(mode="after")
    def _leave_room_for_prefill(self) -> Self:
        if self.max_num_batched_tokens <= self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must exceed "
                f"max_num_seqs ({self.max_num_seqs})",
                why="each of max_num_seqs running requests may take one token of a step, and a "
                "prompt would then never be computed",
                fix=f"Set --max-num-batched-tokens to {self.max_num_seqs + 1} or more, or "
                f"--max-num-seqs to {self.max_num_batched_tokens - 1} or less",
            )
        return self
