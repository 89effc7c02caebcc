"""How many requests of each tenant run, and who may not start another."""

from __future__ import annotations

from collections import Counter

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import TenantId
from evenflow.fairness.tenants import TenantDirectory


class TenantSeats:
    """Counts running requests against each tenant's `max_running`.

    Args:
        directory: knows the limits.

    Attributes:
        num_running: by tenant, running requests; only tenants that have some.
        full: tenants that run as many requests as they may.
    """

    def __init__(self, directory: TenantDirectory) -> None:
        self.num_running: Counter[TenantId] = Counter()
        self.full: set[TenantId] = set()
        self._directory = directory

    def limit(self, tenant_id: TenantId) -> int | None:
        """Return how many requests of a tenant may run at once."""
        return self._directory.limits(tenant_id).max_running

    def take(self, tenant_id: TenantId) -> None:
        """One more request of the tenant runs."""
        self.num_running[tenant_id] += 1
        if self.num_running[tenant_id] == self.limit(tenant_id):
            self.full.add(tenant_id)

    def give_back(self, tenant_id: TenantId) -> None:
        """One request of the tenant runs no longer."""
        self.full.discard(tenant_id)
        self.num_running[tenant_id] -= 1
        if not self.num_running[tenant_id]:
            del self.num_running[tenant_id]

    def check_integrity(self, running: Counter[TenantId]) -> None:
        """Check against a recount of the running requests.

        Raises:
            IntegrityError: a count is wrong, or a tenant runs more than it may.
        """
        if dict(running) != dict(self.num_running):
            raise IntegrityError("running requests of tenants are counted wrongly")
        for tenant_id, count in running.items():
            limit = self.limit(tenant_id)
            if limit is not None and count > limit:
                raise IntegrityError(f"tenant {tenant_id} runs {count} requests of {limit}")
        if self.full != {id_ for id_, count in running.items() if count == self.limit(id_)}:
            raise IntegrityError("the wrong tenants count as full", why=str(self.full))
