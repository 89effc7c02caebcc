"""Carries out a policy, step by step.

    add ──▶ Door ──admit──▶ Residents ──schedule──▶ (the step runs) ──update──▶ ... ──▶ finish
             ▲                  │
             └──── preempt ─────┘

Knows: all that live; of what a step is composed, and what follows from what it has produced.
Does not know: who waits and comes in, which is the `Door`'s; who holds memory, the `Residents`';
what a policy decides by.

Invariants:
    Every live request waits, is held, arrives or runs: exactly one of these.
    A plan lists each running request that gets tokens, in rank order, unless it coasts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from evenflow.core.errors import DuplicateRequestError, IntegrityError
from evenflow.core.events import EventKind, RequestEvent, WaitReason
from evenflow.core.ids import BlockId, RequestId, TenantId
from evenflow.core.request import Request
from evenflow.core.status import RequestStatus
from evenflow.fairness.counters import VirtualCounters
from evenflow.fairness.service import ServiceLedger
from evenflow.fairness.tenants import TenantDirectory
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.account import Account
from evenflow.scheduling.composition import check_composition, leave_out
from evenflow.scheduling.door import Door
from evenflow.scheduling.plan import NO_TOKEN, NO_WORK, StepPlan
from evenflow.scheduling.policy import Policy, SchedulingView
from evenflow.scheduling.residents import Residents
from evenflow.scheduling.seats import TenantSeats
from evenflow.scheduling.siblings import Siblings
from evenflow.scheduling.swapping import switcher_for
from evenflow.scheduling.switching import SwitchOptions
from evenflow.scheduling.tenant_states import TenantState, tenant_states
from evenflow.scheduling.wait_log import WaitLog
from evenflow.scheduling.waiting import WaitingQueue


class Scheduler:
    """Owns the queues. `schedule` plans a step; `update` takes in what the step produced.

    The order within `schedule` is fixed: running requests get memory first (preempting from the
    end of the ranking if they must), then waiting ones are admitted with their whole prompt, then
    the token budget is divided. Because every running request gets a token in every step and
    `max_num_seqs` is below the token budget, a long prompt delays a decode by at most one step of
    at most `max_num_batched_tokens` tokens, and `max_num_batched_tokens - max_num_seqs` tokens of
    each step are left to prefill whatever the number of decodes.

    Args:
        policy: decides ranks, admission, victims and composition.
        kv: the KV memory.
        max_num_seqs: most running requests.
        max_num_batched_tokens: token budget of a step.
        directory: what each tenant weighs and how many requests it may run; without it, all weigh
            the same and run any number.
        switching: how requests leave the device and come back.

    Attributes:
        requests: all that live, by id.
        max_num_batched_tokens: token budget of the next step.
        residents: those that hold memory.
        waiting: those that could start.
        seats: how many of each tenant run.
        switcher: takes requests off the device and brings them back.
        plan: what was planned last.
        service: what each tenant was given so far.
        counters: what that counts for, per weight; see `fairness.counters`.
        before_free: called with each request that has ended, just before what it holds is freed,
            and with the time.
        before_turn: called with each request that a plan lists, just before `update` takes in its
            part, and with the time.
    """

    def __init__(
        self,
        policy: Policy,
        kv: KVCacheManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        directory: TenantDirectory | None = None,
        switching: SwitchOptions | None = None,
    ) -> None:
        self.policy = policy
        self.kv = kv
        self.max_num_batched_tokens = max_num_batched_tokens
        self.requests: dict[RequestId, Request] = {}
        directory = TenantDirectory() if directory is None else directory
        self.service = ServiceLedger()
        self.counters = VirtualCounters(self.service, policy.charges, directory)
        self.waiting = WaitingQueue(policy, self.counters)
        self.seats = TenantSeats(directory)
        self.switcher = switcher_for(kv, SwitchOptions() if switching is None else switching)
        self._account = Account(self.service, self.counters, policy.charges)
        self.residents = Residents(
            policy, kv, self.requests, self.waiting, self.seats, self.switcher, self._account
        )
        self._siblings = Siblings()
        self._waits = WaitLog()
        self._door = Door(self.waiting, self._siblings, self._waits, self.residents, max_num_seqs)
        self.plan = NO_WORK
        self.before_free: Callable[[Request, float], None] | None = None
        self.before_turn: Callable[[Request, float], None] | None = None
        self._planned_s = 0.0

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.requests)

    @property
    def running(self) -> list[Request]:
        """Those that hold memory and compute, in rank order; another list once that may change."""
        return self.residents.running

    @property
    def arriving(self) -> Mapping[RequestId, tuple[Request, int]]:
        """Those into whose memory KV is being loaded, with how many tokens will have KV then."""
        return self.residents.arriving

    @property
    def num_preemptions(self) -> int:
        """Preemptions so far."""
        return self.residents.num_preemptions

    @property
    def preemption_counts(self) -> Counter[tuple[str, str, TenantId]]:
        """Preemptions so far by (mode, reason, tenant)."""
        return self.residents.preemption_counts

    @property
    def lacking(self) -> WaitReason | None:
        """Why nobody could be started; see `Door`."""
        return self._door.lacking

    def add(self, request: Request, now_s: float) -> None:
        """Queue a request; one with a live parent waits for the parent's prompt to be computed.

        Raises:
            DuplicateRequestError: the id belongs to a live request.
        """
        if request.request_id in self.requests:
            raise DuplicateRequestError(
                f"request id {request.request_id!r} is in use",
                param="request_id",
                fix="Send every request under an id of its own",
            )
        self.requests[request.request_id] = request
        parent = self.requests.get(request.parent_id) if request.parent_id else None
        if parent is not None and parent.num_computed_tokens < parent.num_prompt_tokens:
            self._door.hold(request, parent, now_s)
        else:
            self._door.queue(request, self.view(now_s))

    def set_priority(self, request: Request, priority: int, now_s: float) -> None:
        """Have a live request ranked by another priority, from the next step on at the latest."""
        if request.priority == priority:
            return
        request.priority = priority
        self.residents.rerank()
        self.switcher.rerank(request)
        self._door.rerank(request, self.view(now_s))

    @property
    def is_paused(self) -> bool:
        """Whether `schedule` plans nothing; requests stay where they are, with their memory."""
        return self._waits.is_paused

    def pause(self, now_s: float) -> None:
        """Plan nothing until `resume`."""
        if not self.is_paused:
            self._waits.pause(self.requests.values(), now_s)

    def resume(self, now_s: float) -> None:
        """Go on; nothing happens if nothing was paused."""
        self._waits.resume(self.requests.values(), now_s)

    def schedule(self, now_s: float) -> StepPlan:
        """Plan the next step. The plan is empty when nothing can run.

        Raises:
            IntegrityError: the policy composed a step that cannot be.
        """
        if self._waits.is_paused:
            self.plan = NO_WORK
            return NO_WORK
        self._planned_s = now_s
        view, residents = self.view(now_s), self.residents
        residents.begin_step(view)
        self._door.lacking = None
        if not residents.grow(view):
            self._door.admit(view, self.max_num_batched_tokens)
        residents.await_arrivals(view)
        copies = residents.privatise(view)
        self.plan = self._compose(copies)
        self.switcher.before_step(
            self.plan,
            reversed(residents.running),
            lambda: self.waiting.first(view, self.seats.full),
            now_s,
        )
        return self.plan

    def update(self, plan: StepPlan, token_ids: Sequence[int], now_s: float) -> None:
        """Take in a step: advance everybody, append sampled tokens, finish who is done."""
        self._account.hold(self.running, now_s - self._planned_s)
        self._planned_s = now_s  # a step that follows is planned already
        commit = self.kv.commit
        num_output_tokens = self.service.num_output_tokens
        for request, count, token_id in zip(
            plan.requests, plan.num_new_tokens, token_ids, strict=True
        ):
            if self.before_turn is not None:
                self.before_turn(request, now_s)
            if request.status is not RequestStatus.RUNNING:
                continue
            request.num_computed_tokens += count
            commit(request, request.num_computed_tokens)
            tokens = request.token_ids
            if token_id == NO_TOKEN:
                self._account.settle(request, count)
                request.record_chunk(count, now_s)
                if request.pooling is not None and request.num_computed_tokens == len(tokens):
                    self.finish(request, RequestStatus.FINISHED_STOPPED, now_s, "prompt computed")
                continue
            if len(tokens) == request.num_tokens_when_admitted:
                self._account.settle(request, count)
                self._note_caught_up(request, count, now_s)
            tokens.append(token_id)
            num_output_tokens[request.tenant_id] += 1
            if token_id in request.stop_token_ids and self._may_stop(request):
                if token_id in request.sampling.stop_token_ids:
                    request.stop_reason = token_id
                self.finish(request, RequestStatus.FINISHED_STOPPED, now_s, "stop token")
            elif len(tokens) >= request.max_num_tokens:
                self.finish(request, RequestStatus.FINISHED_LENGTH, now_s, "length limit")

    def finish(self, request: Request, status: RequestStatus, now_s: float, cause: str) -> None:
        """End a request and free all it holds at once."""
        self.residents.remove(request)
        self._door.remove(request, now_s)
        request.move_to(status)
        request.record(EventKind.FINISHED, now_s, cause, num_tokens=request.num_computed_tokens)
        del self.requests[request.request_id]
        self._account.withdraw(request)
        if status is RequestStatus.FINISHED_ERROR:
            self.kv.disown(request.request_id)
        if self.before_free is not None:
            self.before_free(request, now_s)
        self.switcher.end(request, now_s)
        self.kv.free(request.request_id)
        self._door.release_siblings(request, self.view(now_s))

    def timeline(self, request: Request, now_s: float) -> list[RequestEvent]:
        """Return a request's turning points, with what it has been queued for by now."""
        return self._waits.timeline(request, now_s)

    def view(self, now_s: float) -> SchedulingView:
        """Return what policies may know beside the requests."""
        return SchedulingView(now_s, self.counters)

    def tenant_states(self) -> Mapping[TenantId, TenantState]:
        """Return how each tenant stands. Takes time in proportion to the waiting requests."""
        waiting = self.waiting.by_tenant()
        return tenant_states(self.seats, self.service, waiting, self._siblings.held)

    def check_integrity(self) -> None:
        """Check that queues, statuses and memory agree.

        Raises:
            IntegrityError: they do not.
        """
        self.kv.check_integrity()
        self.residents.check_integrity()
        arriving = [request for request, _ in self.arriving.values()]
        held = list(self._siblings.held)
        ids = [r.request_id for r in (*self.running, *arriving, *self.waiting, *held)]
        if sorted(ids) != sorted(self.requests):
            raise IntegrityError("the queues do not hold exactly the live requests", why=str(ids))
        if not {request.request_id for request in self.waiting}.issuperset(self._waits.queued_ids):
            raise IntegrityError("the queue's time is counted for somebody who is not in it")
        for request in [*self.waiting, *held]:
            if request.status not in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
                raise IntegrityError(f"{request.request_id} waits as {request.status.name}")
            if request.num_computed_tokens and not self.kv.holds(request.request_id):
                raise IntegrityError(f"{request.request_id} counts KV that it does not hold")

    def _compose(self, copies: list[tuple[BlockId, BlockId]]) -> StepPlan:
        """Divide the step's tokens among those who run."""
        requests = list(self.running)
        counts = self.policy.compose(requests, self.max_num_batched_tokens)
        check_composition(requests, counts, self.max_num_batched_tokens)
        coasting, num_coasting_tokens = self.residents.coasting, self.residents.num_coasting_tokens
        if coasting or 0 in counts:
            requests, counts = leave_out(coasting, requests, counts)
        table = self.kv.table
        tables = [table(r.request_id) for r in requests]
        started = self.residents.take_started()
        return StepPlan(requests, counts, tables, copies, started, coasting, num_coasting_tokens)

    def _note_caught_up(self, request: Request, num_tokens: int, now_s: float) -> None:
        """All tokens of a request that started or resumed are computed, the last few just now."""
        if request.num_output_tokens:
            request.record(EventKind.RECOMPUTED, now_s, "", num_tokens=num_tokens)
            return
        request.first_token_s = now_s
        request.record(EventKind.FIRST_TOKEN, now_s, "", num_tokens=num_tokens)
        self._door.release_siblings(request, self.view(now_s))

    @staticmethod
    def _may_stop(request: Request) -> bool:
        return len(request.token_ids) - request.num_prompt_tokens >= request.sampling.min_tokens
