"""What each tenant was given."""

from __future__ import annotations

from collections import defaultdict

from evenflow.core.ids import TenantId

PROMPT_TOKEN_WEIGHT = 1.0
OUTPUT_TOKEN_WEIGHT = 2.0


class ServiceLedger:
    """Counts tokens per tenant since the start.

    The service of a tenant is a weighted count, as in the virtual token counter (VTC, arXiv
    2401.00588, section 4):

        service = 1 * prompt tokens computed + 2 * output tokens

    The paper charges all of a prompt when its request is admitted; here a prompt token is charged
    once it is computed, so that a request which ends early paid for what it had. Tokens found in
    the prefix cache or shared with a sibling are free, and so is computing tokens again after a
    preemption: it was not the tenant who wanted that. Weights of tenants are left to the reader.

    Attributes:
        num_prompt_tokens: by tenant, prompt tokens computed for the first time.
        num_output_tokens: by tenant, output tokens.
    """

    __slots__ = ("num_output_tokens", "num_prompt_tokens")

    def __init__(self) -> None:
        self.num_prompt_tokens: defaultdict[TenantId, int] = defaultdict(int)
        self.num_output_tokens: defaultdict[TenantId, int] = defaultdict(int)

    def service_tokens(self, tenant_id: TenantId) -> float:
        """Return the service of a tenant, in weighted tokens."""
        return PROMPT_TOKEN_WEIGHT * self.num_prompt_tokens.get(
            tenant_id, 0
        ) + OUTPUT_TOKEN_WEIGHT * self.num_output_tokens.get(tenant_id, 0)

    def tenants(self) -> set[TenantId]:
        """Return the tenants that were given anything."""
        return self.num_prompt_tokens.keys() | self.num_output_tokens.keys()
