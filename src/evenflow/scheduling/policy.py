"""The stages of a policy: small pure functions of frozen views and the time.

A policy decides four things; the scheduler carries them out and nobody else changes anything:

    rank      the order of everybody, first to last
    admit     whether a waiting request may take memory now
    victims   who gives memory back when a running request cannot grow
    compose   how the step's token budget is divided

A policy is registered by name under the entry point group `evenflow.policies`. The protocol is
stable: stages are added with a default, never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from evenflow.core.errors import ConfigError
from evenflow.core.request import RequestView

ENTRY_POINT_GROUP = "evenflow.policies"

RankKey = tuple[float, ...]


@dataclass(slots=True, frozen=True)
class AdmissionView:
    """What memory looks like to a request at the door.

    Attributes:
        num_needed_blocks: blocks its whole prompt takes out of the available ones.
        num_available_blocks: blocks that are free or can be freed without preempting anybody.
        num_running: requests that hold memory and may each need one more block soon.
    """

    num_needed_blocks: int
    num_available_blocks: int
    num_running: int


class Policy(Protocol):
    """A bundle of stages. All are pure: same views, same answer."""

    @property
    def rank_changes_with_time(self) -> bool:
        """Whether ranks must be computed anew in every step."""
        ...

    def rank(self, requests: Sequence[RequestView], now_s: float) -> list[RankKey]:
        """Return a key for each request; the smallest comes first."""
        ...

    def admit(self, request: RequestView, memory: AdmissionView) -> bool:
        """Return whether a waiting request may start, given what memory looks like."""
        ...

    def victims(self, residents: Sequence[RequestView]) -> Sequence[RequestView]:
        """Return who gives up memory, first victim first.

        Args:
            residents: all running requests in rank order; the one that needs memory is among them
                and may be named.
        """
        ...

    def compose(self, residents: Sequence[RequestView], token_budget: int) -> list[int]:
        """Divide the step's tokens.

        Args:
            residents: all running requests in rank order.
            token_budget: most tokens in the step.

        Returns:
            Tokens for each resident, at most what it lacks; 0 for none, but not for all.
        """
        ...


def split_fuse(residents: Sequence[RequestView], token_budget: int) -> list[int]:
    """Give every decode its token first, then fill the budget with prompt chunks in order.

    Long prompts are cut to fit and short ones fused, so that a step has the same size whatever it
    is made of (Dynamic SplitFuse, DeepSpeed-FastGen, arXiv 2401.08671, section 3).
    """
    missing = [request.num_tokens - request.num_computed_tokens for request in residents]
    left = token_budget - missing.count(1)
    for index, count in enumerate(missing):
        if count > 1:
            missing[index] = min(count, left)
            left -= missing[index]
    return missing


def available_policies() -> list[str]:
    """Return the names of all registered policies."""
    return sorted(entry_points(group=ENTRY_POINT_GROUP).names)


def load_policy(name: str) -> Policy:
    """Build the policy registered under `name`.

    Raises:
        ConfigError: there is none.
    """
    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        policy: Policy = entry_point.load()()
        return policy
    raise ConfigError(
        f"there is no scheduling policy {name!r}",
        why=f"registered are {', '.join(available_policies())}",
        fix="Choose one of them with --scheduling-policy, or install the package that brings it",
    )
