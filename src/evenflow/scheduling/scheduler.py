"""Carries out a policy: admits, composes, preempts, and keeps requests and memory in step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

from evenflow.core.errors import DuplicateRequestError, IntegrityError
from evenflow.core.events import EventKind, RequestEvent, WaitReason
from evenflow.core.ids import BlockId, RequestId, TenantId
from evenflow.core.request import Request
from evenflow.core.status import RequestStatus
from evenflow.core.wording import counted
from evenflow.fairness.counters import VirtualCounters
from evenflow.fairness.service import ServiceLedger
from evenflow.fairness.tenants import TenantDirectory
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.account import Account
from evenflow.scheduling.composition import check_composition, leave_out
from evenflow.scheduling.plan import NO_TOKEN, NO_WORK, StepPlan
from evenflow.scheduling.policy import AdmissionView, Policy, SchedulingView, rank_all
from evenflow.scheduling.seats import TenantSeats
from evenflow.scheduling.siblings import Siblings
from evenflow.scheduling.swapping import switcher_for
from evenflow.scheduling.switching import Departure, SwitchOptions
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
        running: those that hold memory and compute, in rank order.
        arriving: those that hold memory into which their KV is being loaded, with how many of their
            tokens will have KV then.
        waiting: those that could start.
        seats: how many of each tenant run.
        plan: what was planned last.
        lacking: why nobody who waits could be started when that was planned; None if nobody
            waits, or things have changed since.
        before_free: called with each request that has ended, just before what it holds is freed,
            and with the time.
        coasting: running requests that decode, and which plans do not list because a `Coast` takes
            in their tokens; empty but while it has a step taken.
        before_turn: called with each request that a plan lists, just before `update` takes in its
            part, and with the time.
        switcher: takes requests off the device and brings them back.
        service: what each tenant was given so far.
        counters: what that counts for, per weight; see `fairness.counters`.
        num_preemptions: preemptions so far.
        preemption_counts: the same by (mode, reason, tenant).
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
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.requests: dict[RequestId, Request] = {}
        self.running: list[Request] = []
        self.arriving: dict[RequestId, tuple[Request, int]] = {}
        directory = TenantDirectory() if directory is None else directory
        self.service = ServiceLedger()
        self.counters = VirtualCounters(self.service, policy.charges, directory)
        self.waiting = WaitingQueue(policy, self.counters)
        self.seats = TenantSeats(directory)
        self.switcher = switcher_for(kv, SwitchOptions() if switching is None else switching)
        self.plan = NO_WORK
        self.lacking: WaitReason | None = None
        self.before_free: Callable[[Request, float], None] | None = None
        self.coasting: Set[Request] = frozenset()
        self.before_turn: Callable[[Request, float], None] | None = None
        self.num_preemptions = 0
        self.preemption_counts: Counter[tuple[str, str, TenantId]] = Counter()
        self._account = Account(self.service, policy.charges)
        self._siblings = Siblings()
        self._waits = WaitLog()
        self._started: list[RequestId] = []
        self._awaited: list[Request] = []
        self._planned_s = 0.0
        # Unless ranks move, the list that was ranked last stays ranked, whoever leaves it; whoever
        # joins makes another.
        self._ranks_move = policy.rank_changes_with_time or policy.ranks_tenants
        self._ranked = self.running

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.requests)

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
            self._siblings.hold(request, parent.request_id)
            cause = f"{parent.request_id} computes the prompt for both"
            self._waits.hold(request, WaitReason.SIBLING, now_s, cause)
        else:
            self._queue(request, now_s)

    @property
    def num_present(self) -> int:
        """Requests that hold a seat and memory, whether they run or arrive."""
        return len(self.running) + len(self.arriving)

    def set_priority(self, request: Request, priority: int, now_s: float) -> None:
        """Have a live request ranked by another priority, from the next step on at the latest."""
        if request.priority == priority:
            return
        request.priority = priority
        self.lacking = None
        self.running = list(self.running)  # another list: its order may not be that of ranks
        self.waiting.rerank(request, self.view(now_s))

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
        self._started = []
        self._planned_s = now_s
        self._land(now_s)
        if self.running is not self._ranked or self._ranks_move:
            self._rank_running(now_s)
        self.lacking = None
        num_preempted = self._grow_residents(now_s)
        if not num_preempted:
            self._admit_waiting(now_s)
        self._await_arrivals(now_s)
        if self.running is not self._ranked:
            self._rank_running(now_s)
        copies = self._privatise(now_s) if self.kv.has_shared_tables else []
        requests = list(self.running)
        counts = self.policy.compose(requests, self.max_num_batched_tokens)
        check_composition(requests, counts, self.max_num_batched_tokens)
        # Some may have been preempted just now, and even have been admitted again.
        coasting = self.coasting and {
            r
            for r in self.coasting & set(requests)
            if len(r.token_ids) > r.num_tokens_when_admitted
        }
        if coasting or 0 in counts:
            requests, counts = leave_out(coasting, requests, counts)
        table = self.kv.table
        tables = [table(r.request_id) for r in requests]
        self.plan = StepPlan(requests, counts, tables, copies, self._started, coasting)
        self.switcher.before_step(
            self.plan,
            reversed(self.running),
            lambda: self.waiting.first(self.view(now_s), self.seats.full),
        )
        return self.plan

    def update(self, plan: StepPlan, token_ids: Sequence[int], now_s: float) -> None:
        """Take in a step: advance everybody, append sampled tokens, finish who is done."""
        self._account.hold(self.running, now_s - self._planned_s)
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
                self._catch_up(request, count, now_s)
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
        self.lacking = None
        if request.status is RequestStatus.RUNNING:
            self._stop_running(request)
        elif request.status is RequestStatus.SWAPPING_IN:
            del self.arriving[request.request_id]
            self.seats.give_back(request.tenant_id)
        else:
            self.waiting.remove(request)
            self._waits.leave(request, now_s)
            self._siblings.forget(request)
        request.move_to(status)
        request.record(EventKind.FINISHED, now_s, cause, num_tokens=request.num_computed_tokens)
        del self.requests[request.request_id]
        self._account.withdraw(request)
        if status is RequestStatus.FINISHED_ERROR:
            self.kv.disown(request.request_id)
        if self.before_free is not None:
            self.before_free(request, now_s)
        self.switcher.end(request)
        self.kv.free(request.request_id)
        # If the prompt was never computed its siblings stand on their own.
        for sibling in self._siblings.release(request.request_id):
            self._queue(sibling, now_s)

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
        arriving = [request for request, _ in self.arriving.values()]
        self.seats.check_integrity(Counter(r.tenant_id for r in (*self.running, *arriving)))
        held = list(self._siblings.held)
        ids = [r.request_id for r in (*self.running, *arriving, *self.waiting, *held)]
        if sorted(ids) != sorted(self.requests):
            raise IntegrityError("the queues do not hold exactly the live requests", why=str(ids))
        if not {request.request_id for request in self.waiting}.issuperset(self._waits.queued_ids):
            raise IntegrityError("the queue's time is counted for somebody who is not in it")
        sharing = {r.request_id for r in self.waiting if self.kv.holds(r.request_id)}
        if sharing != set(self._siblings.sharing_ids):
            raise IntegrityError("the wrong requests count as holding a prompt while they wait")
        self._check_present(self.running, RequestStatus.RUNNING)
        self._check_present(arriving, RequestStatus.SWAPPING_IN)
        for request in [*self.waiting, *held]:
            if request.status not in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
                raise IntegrityError(f"{request.request_id} waits as {request.status.name}")
            if request.num_computed_tokens and not self.kv.holds(request.request_id):
                raise IntegrityError(f"{request.request_id} counts KV that it does not hold")

    def _check_present(self, requests: Iterable[Request], status: RequestStatus) -> None:
        is_arriving = status is RequestStatus.SWAPPING_IN
        for request in requests:
            if request.status is not status or not self.kv.holds(request.request_id):
                raise IntegrityError(
                    f"{request.request_id} is {request.status.name}, not {status.name} with memory"
                )
            if self.switcher.is_arriving(request) is not is_arriving:
                raise IntegrityError(f"KV is on its way to {request.request_id}, or should be")

    def _rank_running(self, now_s: float) -> None:
        running = self.running
        keys = rank_all(self.policy, running, self.view(now_s))
        order = sorted(range(len(running)), key=keys.__getitem__)
        self.running = self._ranked = [running[index] for index in order]

    def _grow_residents(self, now_s: float) -> int:
        """Give every running request room for its tokens; return how many were preempted."""
        ensure = self.kv.ensure
        before = self.num_preemptions
        for request in self.kv.short_of_room(self.running):
            while request.status is RequestStatus.RUNNING and not ensure(
                request.request_id, len(request.token_ids)
            ):
                self._make_room(request, now_s)
        return self.num_preemptions - before

    def _make_room(self, request: Request, now_s: float) -> None:
        """Free some memory: shared prompts of requests that do not run yet, else a victim."""
        if self._take_back_prompt():
            return
        victim = self.requests[self.policy.victims(self.running)[0].request_id]
        cause = f"{request.request_id} needed a block and none was free or evictable"
        self._preempt(victim, now_s, "memory", cause)

    def _take_back_prompt(self) -> bool:
        """Take back a shared prompt from a request that does not run yet, if there is one."""
        request = self._siblings.take_back()
        if request is None:
            return False
        self.kv.free(request.request_id)
        request.num_computed_tokens = 0
        return True

    def _preempt(self, request: Request, now_s: float, reason: str, cause: str) -> Departure:
        departure = self.switcher.leave(request)
        self._account.swap(request, departure.num_bytes)
        self._stop_running(request)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.preemption_counts[departure.mode, reason, request.tenant_id] += 1
        request.move_to(RequestStatus.PREEMPTED)
        request.record_preemption(now_s, f"{departure.mode}: {cause}; {departure.words}")
        request.num_computed_tokens = 0
        request.left_s = now_s
        self.waiting.push(request, self.view(now_s))
        return departure

    def _displace(self, candidate: Request, view: SchedulingView) -> bool:
        """Preempt running requests that a waiting one outranks, if that makes room for it."""
        if not self.switcher.budget.allows(view.now_s):
            return False
        num_needed = self.kv.blocks_needed(candidate, candidate.num_tokens)
        num_available = self.kv.num_available_blocks
        victims: list[Request] = []
        for resident in self.policy.victims(self.running):
            if not self.policy.displaces(candidate, resident, view):
                break
            victim = self.requests[resident.request_id]
            if not self.switcher.may_leave(victim, view.now_s):
                continue
            victims.append(victim)
            num_available += self.kv.num_held_blocks(victim.request_id)
            num_left = self.num_present - len(victims)
            memory = AdmissionView(num_needed, num_available, num_left)
            if num_left == 0 or self.policy.admit(candidate, memory):
                break
        else:
            return False
        if not victims or not (num_left == 0 or self.policy.admit(candidate, memory)):
            return False
        for victim in victims:
            cause = f"{candidate.request_id} comes first"
            departure = self._preempt(victim, view.now_s, "rank", cause)
            self.switcher.budget.spend(departure.cost_s)
        return True

    def _demand(self) -> int:
        """Return how many tokens the requests that are in this step lack."""
        awaited = [self.arriving[request.request_id] for request in self._awaited]
        return sum([len(r.token_ids) - r.num_computed_tokens for r in self.running]) + sum(
            [len(r.token_ids) - num_cached for r, num_cached in awaited]
        )

    def _admit_waiting(self, now_s: float) -> None:
        """Start waiting requests in rank order until tokens, seats or memory run out.

        One that outranks running requests may take their place. Requests whose tenant runs as many
        as it may hold up nobody else.
        """
        if not self.waiting:
            return
        view = self.view(now_s)
        self.waiting.refresh(view)
        lacking: WaitReason | None = None
        full = self.seats.full
        while lacking is None and (request := self.waiting.first(view, full)) is not None:
            lacking = self._admit_or_displace(request, view)
        self._waits.stand_still(lacking, now_s)
        self.lacking = lacking or (WaitReason.TENANT_LIMIT if self.waiting else None)
        for tenant_id in self.seats.full:
            if (request := self.waiting.first_of(tenant_id)) is not None:
                self._hold_back(request, now_s)

    def _admit_or_displace(self, request: Request, view: SchedulingView) -> WaitReason | None:
        """Start the first that waits, or make room for it; return what it lacks otherwise."""
        if self.num_present >= self.max_num_seqs:
            if self._displace(request, view):
                return None
            cause = f"no free seat among {self.max_num_seqs}"
            self._waits.hold(request, WaitReason.SEATS, view.now_s, cause)
            return WaitReason.SEATS
        if self._demand() >= self.max_num_batched_tokens:
            cause = f"running requests take all {self.max_num_batched_tokens} tokens of a step"
            self._waits.hold(request, WaitReason.TOKENS, view.now_s, cause)
            return WaitReason.TOKENS
        if self._admit(request, view.now_s) or self._displace(request, view):
            return None
        if not self.num_present and self._take_back_prompt():
            return None
        return WaitReason.MEMORY

    def _admit(self, request: Request, now_s: float) -> bool:
        kv = self.kv
        num_needed = kv.blocks_needed(request, request.num_tokens)
        num_present = self.num_present
        memory = AdmissionView(num_needed, kv.num_available_blocks, num_present)
        num_cached = None
        if not num_present or self.policy.admit(request, memory):
            num_cached = self.switcher.enter(request, num_present)
        if num_cached is None:
            cause = f"needs {counted(num_needed, 'block')}, {kv.num_available_blocks} available"
            self._waits.hold(request, WaitReason.MEMORY, now_s, cause)
            return False
        self.waiting.remove(request)
        self._waits.leave(request, now_s)
        self._siblings.forget(request)
        self.seats.take(request.tenant_id)
        self.counters.take_turn(request.tenant_id)
        self._account.promise(request)
        if self.switcher.is_arriving(request):
            self._send_for(request, num_cached, now_s)
        else:
            self._start(request, num_cached, now_s)
        return True

    def _send_for(self, request: Request, num_cached: int, now_s: float) -> None:
        """A request has memory, into which its KV is being loaded."""
        self.arriving[request.request_id] = (request, num_cached)
        self._account.swap(request, self.switcher.num_arriving_bytes(request))
        if not self.switcher.may_arrive_beside(request, len(self.running), now_s):
            self._awaited.append(request)
        request.record(EventKind.SWAPPING_IN, now_s, "its KV is loaded from a lower tier")
        request.move_to(RequestStatus.SWAPPING_IN)

    def _await_arrivals(self, now_s: float) -> None:
        """Let everybody wait for arrivals, if they are to or if nobody has anything else to do."""
        awaited, self._awaited = self._awaited, []
        if not self.running and not awaited:
            awaited = [request for request, _ in self.arriving.values()]
        if awaited:
            self.switcher.wait_for(awaited)
            self._land(now_s)

    def _land(self, now_s: float) -> None:
        """Start the requests whose KV has arrived."""
        for request_id, arrival in self.switcher.landed().items():
            request, num_cached = self.arriving.pop(request_id)
            if arrival.failure is not None:
                num_cached = arrival.num_tokens_before
            self._start(request, num_cached, now_s, arrival.failure)
            self.kv.commit(request, num_cached)

    def _start(
        self, request: Request, num_cached: int, now_s: float, failure: str | None = None
    ) -> None:
        """Let a request run that has memory and KV for its first tokens."""
        self.running = [*self.running, request]  # another list: it is not ranked
        request.resident_since_s = now_s
        request.num_computed_tokens = max(request.num_computed_tokens, num_cached)
        request.num_tokens_when_admitted = request.num_tokens
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
        request.num_settled_tokens = max(request.num_settled_tokens, request.num_computed_tokens)
        self._account.promise(request)
        resumed = request.num_preemptions > 0
        if not resumed:
            self._started.append(request.request_id)
        request.move_to(RequestStatus.RUNNING)
        request.record(
            EventKind.RESUMED if resumed else EventKind.SCHEDULED,
            now_s,
            f"{request.num_computed_tokens} of {request.num_tokens} tokens already have KV"
            + (f"; loading more failed: {failure}" if failure is not None else ""),
            num_tokens=request.num_computed_tokens,
        )

    def _privatise(self, now_s: float) -> list[tuple[BlockId, BlockId]]:
        """Give writers private copies of the shared blocks they are about to change."""
        copies: dict[RequestId, list[tuple[BlockId, BlockId]]] = {}
        for request in tuple(self.running):
            first = request.num_computed_tokens
            count = request.num_tokens - first
            while request.status is RequestStatus.RUNNING:
                pairs = self.kv.prepare_write(request.request_id, first, count)
                if pairs is not None:
                    copies[request.request_id] = pairs
                    break
                self._make_room(request, now_s)
        return [pair for request in self.running for pair in copies.get(request.request_id, ())]

    def _catch_up(self, request: Request, num_tokens: int, now_s: float) -> None:
        """All tokens of a request that started or resumed are computed, the last few just now."""
        if request.num_output_tokens:
            request.record(EventKind.RECOMPUTED, now_s, "", num_tokens=num_tokens)
            return
        request.first_token_s = now_s
        request.record(EventKind.FIRST_TOKEN, now_s, "", num_tokens=num_tokens)
        for sibling in self._siblings.release(request.request_id):
            # It computes the last prompt token itself, to draw its own first token.
            num_shared = request.num_prompt_tokens - 1
            self.kv.fork(request.request_id, sibling.request_id, num_shared)
            self._siblings.share(sibling)
            sibling.num_computed_tokens = sibling.num_settled_tokens = num_shared
            self._queue(sibling, now_s)

    def _stop_running(self, request: Request) -> None:
        self.running.remove(request)
        self.seats.give_back(request.tenant_id)

    def _hold_back(self, request: Request, now_s: float) -> None:
        """Tell a request that its tenant runs as many as it may."""
        if request.events[-1].reason is not WaitReason.TENANT_LIMIT:
            num_running = counted(self.seats.num_running[request.tenant_id], "request")
            cause = f"tenant {request.tenant_id} runs {num_running}, as many as it may"
            self._waits.hold(request, WaitReason.TENANT_LIMIT, now_s, cause)

    def _queue(self, request: Request, now_s: float) -> None:
        """Put a request that never ran into the waiting queue."""
        self.lacking = None
        self._waits.enter(request, len(self.waiting), now_s)
        self.waiting.push(request, self.view(now_s))
        if request.tenant_id in self.seats.full:
            self._hold_back(request, now_s)

    @staticmethod
    def _may_stop(request: Request) -> bool:
        return len(request.token_ids) - request.num_prompt_tokens >= request.sampling.min_tokens
