"""Admission control against a slow oracle that keeps every request and every charge."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from evenflow.core.ids import TenantId
from evenflow.fairness.tenants import Tenant, TenantDirectory, TenantLimits
from evenflow.scheduling.admission import RATE_WINDOW_S, AdmissionControl

TENANTS = [TenantId(name) for name in "abc"]
PER_MINUTE = 120  # two a second, so that whole seconds refill whole tokens


class AdmissionMachine(RuleBasedStateMachine):
    """Time goes in whole seconds, which makes every sum exact."""

    @initialize(
        max_requests=st.integers(1, 6),
        max_tokens=st.sampled_from([None, 40]),
        own_requests=st.sampled_from([None, 2]),
        own_tokens=st.sampled_from([None, 25]),
        per_minute=st.sampled_from([None, PER_MINUTE]),
    )
    def start(
        self,
        max_requests: int,
        max_tokens: int | None,
        own_requests: int | None,
        own_tokens: int | None,
        per_minute: int | None,
    ) -> None:
        limits = TenantLimits(1.0, None, own_requests, own_tokens, per_minute)
        directory = TenantDirectory([Tenant(TENANTS[0], limits)])
        self.admission = AdmissionControl(max_requests, max_tokens, directory)
        self.limits: dict[TenantId | None, tuple[int | None, int | None]] = {
            None: (max_requests, max_tokens),
            TENANTS[0]: (own_requests, own_tokens),
        }
        self.has_rate = per_minute is not None
        self.now_s = 0
        self.count = 0
        self.waiting: dict[str, tuple[TenantId, int]] = {}
        self.started: dict[str, tuple[TenantId, int]] = {}
        self.departures: list[tuple[int, TenantId]] = []
        self.charges: list[tuple[int, int]] = []

    # ---- The oracle ----------------------------------------------------------------------------

    def level(self) -> int:
        """The first tenant's tokens, minute by minute from the beginning."""
        level, at_s = PER_MINUTE, 0
        for charged_s, num_tokens in self.charges:
            level = min(PER_MINUTE, level + 2 * (charged_s - at_s)) - num_tokens
            at_s = charged_s
        return min(PER_MINUTE, level + 2 * (self.now_s - at_s))

    def expected(self, tenant_id: TenantId, num_tokens: int) -> tuple[str, int] | None:
        if self.has_rate and tenant_id == TENANTS[0]:
            missing = min(num_tokens, PER_MINUTE) - self.level()
            if missing > 0:
                return "rate_limit_exceeded", -(-missing // 2)
        for owner in (tenant_id, None):
            max_requests, max_tokens = self.limits.get(owner, (None, None))
            queue = [n for owner_, n in self.waiting.values() if owner in (None, owner_)]
            too_many = max_requests is not None and len(queue) >= max_requests
            too_long = max_tokens is not None and sum(queue) + num_tokens > max_tokens
            if queue and (too_many or too_long):
                return "queue_full", self.drain_time_s(owner, len(queue))
        return None

    def drain_time_s(self, owner: TenantId | None, num_queued: int) -> int:
        first_s = self.now_s - RATE_WINDOW_S
        left = [at for at, id_ in self.departures if owner in (None, id_) and at >= first_s]
        if len(left) < 2:
            return 5
        elapsed_s = max(self.now_s - left[0], 1)
        return min(max(-(-num_queued * elapsed_s // len(left)), 1), 60)

    # ---- The rules -----------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0, 1, 3, 20, 40]))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(tenant_id=st.sampled_from(TENANTS), num_tokens=st.sampled_from([1, 9, 30, 150]))
    def offer(self, tenant_id: TenantId, num_tokens: int) -> None:
        early = self.admission.refuse_early(tenant_id, self.now_s)
        assert (early and (early.code, early.retry_after_s)) == self.expected(tenant_id, 1)
        refusal = self.admission.offer(tenant_id, num_tokens, self.now_s)
        assert (refusal and (refusal.code, refusal.retry_after_s)) == self.expected(
            tenant_id, num_tokens
        )
        assert early is None or refusal is not None
        if refusal is not None:
            return
        name = f"r{self.count}"
        self.count += 1
        self.admission.queued(name, tenant_id, num_tokens)
        self.waiting[name] = tenant_id, num_tokens
        if tenant_id == TENANTS[0]:
            self.charges.append((self.now_s, num_tokens))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def start_one(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        self.admission.started(name, self.now_s)
        self.started[name] = self.waiting.pop(name)
        self.departures.append((self.now_s, self.started[name][0]))

    @precondition(lambda self: self.waiting or self.started)
    @rule(data=st.data(), num_output_tokens=st.sampled_from([0, 5, 200]))
    def end_one(self, data: st.DataObject, num_output_tokens: int) -> None:
        name = data.draw(st.sampled_from(sorted({**self.waiting, **self.started})))
        self.admission.ended(name, num_output_tokens, self.now_s)
        if name in self.waiting:
            self.departures.append((self.now_s, self.waiting[name][0]))
        tenant_id, _ = self.waiting.pop(name, None) or self.started.pop(name)
        if tenant_id == TENANTS[0]:
            self.charges.append((self.now_s, num_output_tokens))

    @invariant()
    def integrity(self) -> None:
        if hasattr(self, "admission"):
            self.admission.check_integrity()
            assert self.admission.num_queued_reqs == len(self.waiting)
            assert self.admission.num_queued_tokens == sum(n for _, n in self.waiting.values())


AdmissionMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)
TestAdmissionMachine = AdmissionMachine.TestCase
