"""The waiting requests, tenant by tenant in rank order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator

from evenflow.core.ids import RequestId, TenantId
from evenflow.core.request import Request
from evenflow.scheduling.policy import Policy, RankKey

_Place = tuple[RankKey, int]  # no two requests have the same sequence number


class WaitingQueue:
    """Keeps waiting requests sorted by the policy's rank.

    When ranks do not change with time a request is ranked once, on entry; otherwise `refresh` ranks
    everybody anew. The requests of each tenant are a line of their own, so that finding the first
    one whose tenant may start another takes a look at one request per tenant.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
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

    def push(self, request: Request, now_s: float) -> None:
        """Add a request at its rank."""
        (key,) = self._policy.rank([request], now_s)
        place = (key, request.sequence_number)
        self._places[request.request_id] = place
        insort(self._lines.setdefault(request.tenant_id, []), (place, request))

    def remove(self, request: Request) -> None:
        """Take a request out, if it is here."""
        place = self._places.pop(request.request_id, None)
        if place is None:
            return
        line = self._lines[request.tenant_id]
        del line[bisect_left(line, (place,))]
        if not line:
            del self._lines[request.tenant_id]

    def refresh(self, now_s: float) -> None:
        """Rank everybody anew, if ranks change with time."""
        if not self._policy.rank_changes_with_time:
            return
        requests = list(self)
        self._lines.clear()
        for key, request in zip(self._policy.rank(requests, now_s), requests, strict=True):
            place = self._places[request.request_id] = (key, request.sequence_number)
            self._lines.setdefault(request.tenant_id, []).append((place, request))
        for line in self._lines.values():
            line.sort()

    def first(self, passed_over: Collection[TenantId] = ()) -> Request | None:
        """Return the request that is next in line, without regard to some tenants."""
        heads = [line[0] for tenant_id, line in self._lines.items() if tenant_id not in passed_over]
        return min(heads)[1] if heads else None

    def first_of(self, tenant_id: TenantId) -> Request | None:
        """Return the request of one tenant that is next in line."""
        line = self._lines.get(tenant_id)
        return line[0][1] if line else None
