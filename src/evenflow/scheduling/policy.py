"""The stages of a policy: small pure functions of read-only views.

A policy decides these things; the scheduler carries them out and nobody else changes anything:

    rank           the order of requests, first to last
    rank_tenants   the order of tenants, which comes before that of their requests
    admit          whether a waiting request may take memory now
    displaces      whether a waiting request may take the place of a running one
    victims        who gives memory back when a running request cannot grow
    compose        how the step's token budget is divided

A policy is registered by name under the entry point group `evenflow.policies`. Those that inherit
from `Policy`, or from a built-in one, need not write what has a default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from evenflow.core.errors import ConfigError
from evenflow.core.ids import TenantId
from evenflow.core.request import RequestView
from evenflow.fairness.service import VTC_CHARGES, Charges

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


class Counters(Protocol):
    """What every tenant was charged per weight; 0 for one that never came."""

    def __getitem__(self, tenant_id: TenantId, /) -> float: ...


@dataclass(slots=True, frozen=True)
class SchedulingView:
    """What there is to know beside the requests.

    Attributes:
        now_s: the engine clock's time.
        counters: the virtual counter of each tenant (`fairness.counters`), as it is when asked.
    """

    now_s: float
    counters: Counters


class Policy(Protocol):
    """A bundle of stages. All are pure: same views, same answer.

    Attributes:
        rank_changes_with_time: whether the order of requests of one tenant, or of all if tenants
            are not ranked, must be computed anew in every step.
        ranks_tenants: whether `rank_tenants` has something to say.
        charges: what the counters of tenants count.
    """

    rank_changes_with_time: bool = False
    ranks_tenants: bool = False
    charges: Charges = VTC_CHARGES

    def rank(self, requests: Sequence[RequestView], view: SchedulingView) -> list[RankKey]:
        """Return a key for each request; the smallest comes first.

        Keys may depend on counters only if ranks change with time.
        """
        ...

    def rank_tenants(self, tenant_ids: Sequence[TenantId], view: SchedulingView) -> list[RankKey]:
        """Return a key for each tenant; all requests of the smallest come first.

        Asked in every step, if `ranks_tenants`. Among tenants with equal keys `rank` decides.
        Keys may depend on the time only if ranks change with time.
        """
        return [()] * len(tenant_ids)

    def admit(self, request: RequestView, memory: AdmissionView) -> bool:
        """Return whether a waiting request may start, given what memory looks like."""
        ...

    def displaces(
        self, candidate: RequestView, resident: RequestView, view: SchedulingView
    ) -> bool:
        """Return whether a running request is to give its place to a waiting one.

        It must not be so that two requests displace each other in turn: whoever displaced somebody
        has to stay ahead long enough for the switch to be worth its price.

        Args:
            candidate: the first that waits.
            resident: one that runs.
            view: the time, and what tenants were charged.
        """
        return False

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
            Tokens for each resident, at most what it lacks; 0 for none, but not for all. One that
            lacks a single token, the last it sampled, gets it.
        """
        ...


def rank_all(
    policy: Policy, requests: Sequence[RequestView], view: SchedulingView
) -> list[RankKey]:
    """Return a key for each request, by tenant first if the policy ranks tenants."""
    keys = policy.rank(requests, view)
    if not policy.ranks_tenants:
        return keys
    tenant_ids = list({request.tenant_id for request in requests})
    of_tenant = dict(zip(tenant_ids, policy.rank_tenants(tenant_ids, view), strict=True))
    return [of_tenant[request.tenant_id] + key for request, key in zip(requests, keys, strict=True)]


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
