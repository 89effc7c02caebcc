"""Virtual counters: who is next, if everybody is to get service in proportion to their weight.

    counter = (service + charge of promised prompt tokens) / weight + lifts

A promise is a prompt that was admitted and is not computed yet. With it a counter moves at the very
moment of admission, as in VTC, so that one step does not give all free seats to the tenant that was
first at its beginning.

A tenant without waiting requests wants nothing that it does not get, so it earns no credit: when it
comes back, its counter is lifted to the level that those who waited meanwhile have reached. The
level is the virtual time of start-time fair queueing. It only rises:

    an admission    to the counter of the tenant whose turn it was
    a lift          to the smallest counter of those who wait

Knows: the ledger, charges, weights, who waits when somebody comes.
Does not know: requests, queues, time.

Invariants, while waiting requests start in order of their tenants' counters:
    The counter of a tenant that waits, and may start more, is at least the level.
    A counter is at most the level it was last admitted at, and what that tenant's running requests
        have been charged since.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenflow.core.ids import TenantId
from evenflow.fairness.service import Charges, ServiceLedger
from evenflow.fairness.tenants import TenantDirectory


class VirtualCounters:
    """The counter of every tenant; 0 for one that never came. Computed from the ledger when asked.

    Args:
        service: what each tenant was given.
        charges: what that counts for.
        directory: knows the weights.
    """

    def __init__(
        self, service: ServiceLedger, charges: Charges, directory: TenantDirectory
    ) -> None:
        self._service = service
        self._charges = charges
        self._directory = directory
        self._lifts: dict[TenantId, float] = {}
        self._level = 0.0

    def __getitem__(self, tenant_id: TenantId) -> float:
        service = self._service.service_tokens(tenant_id, self._charges)
        promised = self._service.num_promised_tokens.get(tenant_id, 0)
        charged = service + self._charges.prompt_token * promised
        return charged / self._directory.limits(tenant_id).weight + self._lifts.get(tenant_id, 0.0)

    def take_turn(self, tenant_id: TenantId) -> None:
        """A tenant's request is admitted, and not promised anything yet."""
        self._level = max(self._level, self[tenant_id])

    def come_back(self, tenant_id: TenantId, rivals: Iterable[TenantId]) -> None:
        """A tenant without waiting requests has one again.

        Args:
            tenant_id: the tenant.
            rivals: those that wait already.
        """
        self._level = max(self._level, min((self[rival] for rival in rivals), default=0.0))
        lift = self._level - self[tenant_id]
        if lift > 0:
            self._lifts[tenant_id] = self._lifts.get(tenant_id, 0.0) + lift
