"""The waiting requests, tenant by tenant in rank order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator

from evenflow.core.ids import RequestId, TenantId
from evenflow.core.request import Request
from evenflow.fairness.counters import VirtualCounters
from evenflow.scheduling.policy import Policy, RankKey, SchedulingView

_Place = tuple[RankKey, int]  # no two requests have the same sequence number


class WaitingQueue:
    """Keeps waiting requests sorted by the policy's rank.

    When ranks do not change with time a request is ranked once, on entry; otherwise `refresh` ranks
    everybody anew. The requests of each tenant are a line of their own, so that finding the first
    one whose tenant may start another takes a look at one request per tenant, and tenants can
    change places without their lines being sorted again.

    Args:
        policy: ranks.
        counters: told when a tenant begins to wait, if the policy ranks tenants.
    """

    def __init__(self, policy: Policy, counters: VirtualCounters) -> None:
        self._policy = policy
        self._counters = counters
        self._lines: dict[TenantId, list[tuple[_Place, Request]]] = {}
        self._places: dict[RequestId, _Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Request]:
        """Yield the requests tenant by tenant, those of a tenant in rank order."""
        return (request for line in self._lines.values() for _, request in line)

    def by_tenant(self) -> dict[TenantId, list[Request]]:
        """Return the requests of each tenant that has some, in rank order."""
        return {id_: [request for _, request in line] for id_, line in self._lines.items()}

    def push(self, request: Request, view: SchedulingView) -> None:
        """Add a request at its rank."""
        if self._policy.ranks_tenants and request.tenant_id not in self._lines:
            self._counters.come_back(request.tenant_id, self._lines)
        self._insert(request, view)

    def remove(self, request: Request) -> None:
        """Take a request out, if it is here."""
        place = self._places.pop(request.request_id, None)
        if place is None:
            return
        line = self._lines[request.tenant_id]
        del line[bisect_left(line, (place,))]
        if not line:
            del self._lines[request.tenant_id]

    def rerank(self, request: Request, view: SchedulingView) -> None:
        """Move a request to the place that its rank is now, if it is here."""
        if request.request_id in self._places:
            self.remove(request)
            self._insert(request, view)

    def refresh(self, view: SchedulingView) -> None:
        """Rank everybody anew, if ranks change with time."""
        if not self._policy.rank_changes_with_time:
            return
        requests = list(self)
        self._lines.clear()
        for key, request in zip(self._policy.rank(requests, view), requests, strict=True):
            place = self._places[request.request_id] = (key, request.sequence_number)
            self._lines.setdefault(request.tenant_id, []).append((place, request))
        for line in self._lines.values():
            line.sort()

    def first(self, view: SchedulingView, passed_over: Collection[TenantId] = ()) -> Request | None:
        """Return the request that is next in line, without regard to some tenants."""
        heads = {id_: line[0] for id_, line in self._lines.items() if id_ not in passed_over}
        if not heads:
            return None
        if not self._policy.ranks_tenants:
            return min(heads.values())[1]
        keys = self._policy.rank_tenants(list(heads), view)
        return min(zip(keys, heads.values(), strict=True))[1][1]

    def first_of(self, tenant_id: TenantId) -> Request | None:
        """Return the request of one tenant that is next in line."""
        line = self._lines.get(tenant_id)
        return line[0][1] if line else None

    def _insert(self, request: Request, view: SchedulingView) -> None:
        (key,) = self._policy.rank([request], view)
        place = (key, request.sequence_number)
        self._places[request.request_id] = place
        insort(self._lines.setdefault(request.tenant_id, []), (place, request))
