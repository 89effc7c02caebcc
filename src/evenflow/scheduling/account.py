"""Charges tenants for what their requests are given.

    admit ──▶ promised ──settle, settle──▶ prompt computed ──▶ output, counted token by token
                  └── ended ──withdraw──▶

Knows: requests and the ledger.
Does not know: queues, weights.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.fairness.counters import VirtualCounters
from evenflow.fairness.service import Charges, ServiceLedger


class Account:
    """Writes the ledger.

    Args:
        service: the ledger.
        counters: told whose turn it was.
        charges: whether memory is charged, which takes a look at all running requests.
    """

    def __init__(self, service: ServiceLedger, counters: VirtualCounters, charges: Charges) -> None:
        self._service = service
        self._counters = counters
        self._charges_memory = charges.held_token_s > 0
        self._promised: dict[RequestId, int] = {}

    def admit(self, request: Request) -> None:
        """It was the turn of a request's tenant, and it is going to be charged for the prompt."""
        self._counters.take_turn(request.tenant_id)
        self.promise(request)

    def promise(self, request: Request) -> None:
        """What the prompt of an admitted request lacks by now is going to be charged."""
        num_tokens = max(0, request.num_prompt_tokens - request.num_settled_tokens)
        more = num_tokens - self._promised.get(request.request_id, 0)
        self._promised[request.request_id] = num_tokens
        self._service.num_promised_tokens[request.tenant_id] += more

    def withdraw(self, request: Request) -> None:
        """A request has ended, and whatever was promised to it is not going to be charged."""
        num_tokens = self._promised.pop(request.request_id, 0)
        self._service.num_promised_tokens[request.tenant_id] -= num_tokens

    def settle(self, request: Request, count: int) -> None:
        """Charge `count` tokens that were just computed, be it for the first time or again."""
        service, tenant_id = self._service, request.tenant_id
        num_computed = request.num_computed_tokens
        num_known = request.num_settled_tokens
        if request.num_output_tokens:
            num_known = request.num_tokens - 1
        num_again = min(num_computed, num_known) - (num_computed - count)
        if num_again > 0:
            service.num_recomputed_tokens[tenant_id] += num_again
        num_new = min(num_computed, request.num_prompt_tokens) - request.num_settled_tokens
        if num_new > 0:
            service.num_prompt_tokens[tenant_id] += num_new
            service.num_promised_tokens[tenant_id] -= num_new
            self._promised[request.request_id] -= num_new
            request.num_settled_tokens += num_new

    def swap(self, request: Request, num_bytes: int) -> None:
        """Charge KV that is moved to or from a lower tier for a request."""
        self._service.num_swapped_bytes[request.tenant_id] += num_bytes

    def hold(self, running: Iterable[Request], seconds: float) -> None:
        """Charge the memory of running requests for the time of a step, if anybody charges it."""
        if not self._charges_memory:
            return
        held_token_s = self._service.held_token_s
        for request in running:
            held_token_s[request.tenant_id] += request.num_computed_tokens * seconds
