"""What each tenant was given, and what that counts for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from evenflow.core.ids import TenantId

_MIB = 2**20


@dataclass(slots=True, frozen=True)
class Charges:
    """What the parts of a tenant's service count for, in weighted tokens.

    The defaults are those of the virtual token counter (VTC, arXiv 2401.00588, section 4). The
    paper charges all of a prompt when its request is admitted; here a prompt token is charged once
    it is computed, so that a request which ends early paid for what it had.

    Attributes:
        prompt_token: per prompt token computed for the first time. Tokens found in the prefix cache
            or shared with a sibling are free.
        output_token: per output token.
        recomputed_token: per token computed again because its KV was lost.
        swapped_mib: per MiB of KV that is written to a lower tier because a request is preempted,
            or loaded because one comes back.
        held_token_s: per token of KV that a running request holds for one second of steps.
    """

    prompt_token: float = 1.0
    output_token: float = 2.0
    recomputed_token: float = 0.0
    swapped_mib: float = 0.0
    held_token_s: float = 0.0


VTC_CHARGES = Charges()


class ServiceLedger:
    """Counts what each tenant was given since the start: facts, whatever they are charged at.

    Attributes:
        num_prompt_tokens: by tenant, prompt tokens computed for the first time.
        num_output_tokens: by tenant, output tokens.
        num_recomputed_tokens: by tenant, tokens computed again because their KV was lost.
        num_swapped_bytes: by tenant, bytes of KV written and loaded by its switches.
        held_token_s: by tenant, tokens of KV held times seconds; kept if the policy charges it.
        num_promised_tokens: by tenant, prompt tokens of requests that were admitted and neither
            computed them nor ended. Not service yet: the only figure that also falls.
    """

    __slots__ = (
        "held_token_s",
        "num_output_tokens",
        "num_promised_tokens",
        "num_prompt_tokens",
        "num_recomputed_tokens",
        "num_swapped_bytes",
    )

    def __init__(self) -> None:
        self.num_prompt_tokens: defaultdict[TenantId, int] = defaultdict(int)
        self.num_output_tokens: defaultdict[TenantId, int] = defaultdict(int)
        self.num_recomputed_tokens: defaultdict[TenantId, int] = defaultdict(int)
        self.num_swapped_bytes: defaultdict[TenantId, int] = defaultdict(int)
        self.held_token_s: defaultdict[TenantId, float] = defaultdict(float)
        self.num_promised_tokens: defaultdict[TenantId, int] = defaultdict(int)

    def service_tokens(self, tenant_id: TenantId, charges: Charges = VTC_CHARGES) -> float:
        """Return the service of a tenant, in weighted tokens."""
        return (
            charges.prompt_token * self.num_prompt_tokens.get(tenant_id, 0)
            + charges.output_token * self.num_output_tokens.get(tenant_id, 0)
            + charges.recomputed_token * self.num_recomputed_tokens.get(tenant_id, 0)
            + charges.swapped_mib * self.num_swapped_bytes.get(tenant_id, 0) / _MIB
            + charges.held_token_s * self.held_token_s.get(tenant_id, 0.0)
        )

    def tenants(self) -> set[TenantId]:
        """Return the tenants that were given anything."""
        return self.num_prompt_tokens.keys() | self.num_output_tokens.keys()
