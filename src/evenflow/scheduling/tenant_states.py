"""How each tenant stands at the moment: for metrics and the dashboard."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from evenflow.core.events import WaitReason
from evenflow.core.ids import TenantId
from evenflow.core.request import Request
from evenflow.core.status import RequestStatus
from evenflow.fairness.service import ServiceLedger
from evenflow.scheduling.seats import TenantSeats


@dataclass(slots=True)
class TenantState:
    """Where a tenant's requests are, and what service it got.

    Attributes:
        num_running: requests that hold memory and compute.
        num_waiting_by_reason: waiting requests by what they wait for: "sibling" (the completion
            that computes their prompt), "tenant_limit" (the tenant runs as many as it may),
            "memory" (they lost theirs, or stand at the door and do not fit), "queue" (the rest).
        service_tokens: weighted tokens since the start; see `ServiceLedger`.
    """

    num_running: int = 0
    num_waiting_by_reason: Counter[str] = field(default_factory=Counter)
    service_tokens: float = 0.0


def tenant_states(
    seats: TenantSeats,
    service: ServiceLedger,
    waiting: Mapping[TenantId, Sequence[Request]],
    siblings: Iterable[Request],
) -> Mapping[TenantId, TenantState]:
    """Look at every tenant that has requests or was ever served.

    Args:
        seats: who runs how many.
        service: what each was given.
        waiting: by tenant, the requests in the waiting queue.
        siblings: those that are not in it yet because another one computes their prompt.
    """
    states: defaultdict[TenantId, TenantState] = defaultdict(TenantState)
    for tenant_id in service.tenants():
        states[tenant_id].service_tokens = service.service_tokens(tenant_id)
    for tenant_id, count in seats.num_running.items():
        states[tenant_id].num_running = count
    for request in siblings:
        states[request.tenant_id].num_waiting_by_reason["sibling"] += 1
    for tenant_id, requests in waiting.items():
        reasons = states[tenant_id].num_waiting_by_reason
        if tenant_id in seats.full:
            reasons["tenant_limit"] = len(requests)
            continue
        num_lacking_memory = sum(map(_lacks_memory, requests))
        reasons["memory"] = num_lacking_memory
        reasons["queue"] = len(requests) - num_lacking_memory
    return states


def _lacks_memory(request: Request) -> bool:
    lost_it = request.status is RequestStatus.PREEMPTED
    return lost_it or request.events[-1].reason is WaitReason.MEMORY
