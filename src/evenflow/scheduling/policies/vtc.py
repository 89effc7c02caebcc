"""The virtual token counter: whoever had least service per weight is next.

Y. Sheng et al., Fairness in Serving Large Language Models, OSDI 2024 (arXiv 2401.00588), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.core.ids import TenantId
from evenflow.core.request import RequestView
from evenflow.scheduling.policies.priority import Priority
from evenflow.scheduling.policy import RankKey, SchedulingView


class Vtc(Priority):
    """Serves the tenant with the smallest counter; by priority, then arrival, within a tenant."""

    ranks_tenants = True
    quantum = 256.0
    """Weighted tokens per weight by which a tenant may be ahead before its requests are displaced,
    beyond what the displacement itself brings about."""

    def rank_tenants(self, tenant_ids: Sequence[TenantId], view: SchedulingView) -> list[RankKey]:
        """Order by counter."""
        return [(view.counters[tenant_id],) for tenant_id in tenant_ids]

    def displaces(
        self, candidate: RequestView, resident: RequestView, view: SchedulingView
    ) -> bool:
        """Displace whose tenant is ahead by more than a quantum and the candidate's tokens.

        A switch moves or computes these tokens and may charge them to the candidate's tenant, so
        this keeps the two from displacing each other in turn: the longer the context, the less
        often. Within a tenant priority decides.
        """
        if candidate.tenant_id == resident.tenant_id:
            return super().displaces(candidate, resident, view)
        lead = view.counters[resident.tenant_id] - view.counters[candidate.tenant_id]
        return lead > self.quantum + candidate.num_tokens
