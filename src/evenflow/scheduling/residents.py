"""Who holds KV memory, and who gives it up for whom.

               ┌──────────────── preempt ────────────────┐
               ▼                                         │
           the queue ──admit──▶ arriving ──land──▶ running ──remove──▶ ended
            │     ▲             (at once, if nothing has to be loaded)
          share  take back
            ▼     │
        holds a prompt that a sibling has computed, and waits

Those who run come first: each is given room for its next tokens before anybody is let in. Room that
is not there is made, at the lowest price first: prompts are taken back from those who only wait,
then the policy names a victim.

Knows: who runs, in rank order; who arrives; who waits with a shared prompt; what that costs whom.
Does not know: why others wait; what a step computes; how KV moves, which is the `Switcher`'s.

Invariants:
    Who runs or arrives has a seat and a block table. Who waits has none, unless it shares a prompt.
    KV is on its way to those who arrive, and to nobody else.
    `running` is another list whenever its order may not be that of ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from evenflow.core.errors import IntegrityError
from evenflow.core.events import EventKind, WaitReason
from evenflow.core.ids import BlockId, RequestId, TenantId
from evenflow.core.request import Request, RequestView
from evenflow.core.status import RequestStatus
from evenflow.core.wording import counted
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.account import Account
from evenflow.scheduling.policy import AdmissionView, Policy, SchedulingView, rank_all
from evenflow.scheduling.seats import TenantSeats
from evenflow.scheduling.switching import Departure, Switcher
from evenflow.scheduling.waiting import WaitingQueue


class Residents:
    """Those who hold memory.

    Args:
        policy: ranks, agrees to admissions, names victims.
        kv: the memory.
        requests: all that live, by id.
        waiting: where whoever is admitted comes from and whoever is preempted goes.
        seats: counts who runs or arrives.
        switcher: takes requests off the device and brings them back.
        account: charged for it.

    Attributes:
        running: those that hold memory and compute, in rank order.
        arriving: those that hold memory into which their KV is being loaded, with how many of their
            tokens will have KV then.
        seats: how many of each tenant are here.
        num_preemptions: preemptions so far.
        preemption_counts: the same by (mode, reason, tenant).
        coasting: running requests that decode, and which plans do not list because a `Coast` takes
            in their tokens; empty but while it has a step taken.
        num_coasting_tokens: tokens of theirs that have KV, summed.
        before_look: called before it matters how far each of them is, which nobody knows until it
            lands.
    """

    def __init__(
        self,
        policy: Policy,
        kv: KVCacheManager,
        requests: Mapping[RequestId, Request],
        waiting: WaitingQueue,
        seats: TenantSeats,
        switcher: Switcher,
        account: Account,
    ) -> None:
        self.running: list[Request] = []
        self.arriving: dict[RequestId, tuple[Request, int]] = {}
        self.seats = seats
        self.num_preemptions = 0
        self.preemption_counts: Counter[tuple[str, str, TenantId]] = Counter()
        self.coasting: set[Request] = set()
        self.num_coasting_tokens = 0
        self.before_look: Callable[[], None] | None = None
        self._policy = policy
        self._kv = kv
        self._requests = requests
        self._waiting = waiting
        self._switcher = switcher
        self._account = account
        self._sharing: dict[RequestId, Request] = {}
        self._awaited: list[Request] = []
        self._started: list[RequestId] = []
        # Unless ranks move, the list that was ranked last stays ranked, whoever leaves it; whoever
        # joins makes another.
        self._ranks_move = policy.rank_changes_with_time or policy.ranks_tenants
        self._ranked = self.running

    @property
    def num_present(self) -> int:
        """Requests that hold a seat and memory, whether they run or arrive."""
        return len(self.running) + len(self.arriving)

    @property
    def num_missing_tokens(self) -> int:
        """Tokens that the requests which will be in this step lack."""
        awaited = [self.arriving[request.request_id] for request in self._awaited]
        return sum([len(r.token_ids) - r.num_computed_tokens for r in self.running]) + sum(
            [len(r.token_ids) - num_cached for r, num_cached in awaited]
        )

    def begin_step(self, view: SchedulingView) -> None:
        """Start those whose KV has arrived, and rank those who run."""
        self._land(view.now_s)
        self._rank(view, anew=self._ranks_move)

    def grow(self, view: SchedulingView) -> int:
        """Give every running request room for its tokens; return how many were preempted."""
        ensure = self._kv.ensure
        before = self.num_preemptions
        requests = self.running
        if self.before_look is not None:  # whoever coasts has room, and counts no token yet
            requests = [request for request in requests if request not in self.coasting]
        for request in self._kv.short_of_room(requests):
            while request.status is RequestStatus.RUNNING and not ensure(
                request.request_id, len(request.token_ids)
            ):
                self._make_room(request, view)
        return self.num_preemptions - before

    def admit(self, request: Request, view: SchedulingView) -> str | None:
        """Let a waiting request in, if the policy agrees and there is room for all its tokens.

        Returns:
            What it lacks, in words; None if it is in.
        """
        kv, num_present = self._kv, self.num_present
        num_needed = kv.blocks_needed(request, request.num_tokens)
        memory = AdmissionView(num_needed, kv.num_available_blocks, num_present)
        num_cached = None
        if not num_present or self._policy.admit(request, memory):
            num_cached = self._switcher.enter(request, num_present)
        if num_cached is None:
            return f"needs {counted(num_needed, 'block')}, {kv.num_available_blocks} available"
        self._waiting.remove(request)
        self._sharing.pop(request.request_id, None)
        self.seats.take(request.tenant_id)
        self._account.admit(request)
        if self._switcher.is_arriving(request):
            self._send_for(request, num_cached, view.now_s)
        else:
            self._start(request, num_cached, view.now_s)
        return None

    def displace(self, candidate: Request, view: SchedulingView) -> bool:
        """Preempt running requests that a waiting one outranks, if that makes room for it."""
        budget = self._switcher.budget
        if not budget.allows(view.now_s):
            return False
        victims = self._outranked(candidate, view)
        for victim in victims:
            cause = f"{candidate.request_id} comes first"
            budget.spend(self.preempt(victim, view, WaitReason.RANK, cause).cost_s)
        return bool(victims)

    def preempt(
        self, request: Request, view: SchedulingView, reason: WaitReason, cause: str
    ) -> Departure:
        """Have a running request give up its memory and queue again."""
        if request in self.coasting:
            self.coasting.remove(request)
            self.num_coasting_tokens -= request.num_computed_tokens
        departure = self._switcher.leave(request)
        self._account.swap(request, departure.num_bytes)
        self.remove(request)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.preemption_counts[departure.mode, reason.value, request.tenant_id] += 1
        request.move_to(RequestStatus.PREEMPTED)
        cause = f"{departure.mode}: {cause}; {departure.words}"
        request.record_preemption(reason, view.now_s, cause)
        request.num_computed_tokens = 0
        request.left_s = view.now_s
        self._waiting.push(request, view)
        return departure

    def await_arrivals(self, view: SchedulingView) -> None:
        """Let everybody wait for arrivals, if they are to or if nobody has anything else to do.

        Those who run are ranked then, be it with those who were admitted or with these.
        """
        awaited, self._awaited = self._awaited, []
        if not self.running and not awaited:
            awaited = [request for request, _ in self.arriving.values()]
        if awaited:
            self._land(view.now_s + self._switcher.wait_for(awaited))
        self._rank(view)

    def privatise(self, view: SchedulingView) -> list[tuple[BlockId, BlockId]]:
        """Give writers private copies of the shared blocks they are about to change.

        Returns:
            (source, destination) blocks to copy; see `KVCacheManager.prepare_write`.
        """
        if not self._kv.has_shared_tables:
            return []
        copies: dict[RequestId, list[tuple[BlockId, BlockId]]] = {}
        for request in tuple(self.running):
            first = request.num_computed_tokens
            count = request.num_tokens - first
            while request.status is RequestStatus.RUNNING:
                pairs = self._kv.prepare_write(request.request_id, first, count)
                if pairs is not None:
                    copies[request.request_id] = pairs
                    break
                self._make_room(request, view)
        return [pair for request in self.running for pair in copies.get(request.request_id, ())]

    def take_started(self) -> list[RequestId]:
        """Return those who began to run for the first time since this was last called."""
        started, self._started = self._started, []
        return started

    def share(self, parent: Request, sibling: Request) -> None:
        """Let a request that does not run yet hold the prompt that a running one has computed."""
        # It computes the last prompt token itself, to draw its own first token.
        num_shared = parent.num_prompt_tokens - 1
        self._kv.fork(parent.request_id, sibling.request_id, num_shared)
        self._sharing[sibling.request_id] = sibling
        sibling.num_computed_tokens = sibling.num_settled_tokens = num_shared

    def take_back_prompt(self) -> bool:
        """Take back a shared prompt from a request that does not run yet, if there is one."""
        if not self._sharing:
            return False
        _, request = self._sharing.popitem()
        self._kv.free(request.request_id)
        request.num_computed_tokens = 0
        return True

    def remove(self, request: Request) -> None:
        """Take a request out, if it is here; its blocks remain to be freed."""
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
            self.seats.give_back(request.tenant_id)
        elif self.arriving.pop(request.request_id, None) is not None:
            self.seats.give_back(request.tenant_id)
        else:
            self._sharing.pop(request.request_id, None)

    def rerank(self) -> None:
        """A rank has changed: rank those who run before the next step."""
        self.running = list(self.running)

    def check_integrity(self) -> None:
        """Check that seats, statuses and memory agree.

        Raises:
            IntegrityError: they do not.
        """
        arriving = [request for request, _ in self.arriving.values()]
        self.seats.check_integrity(Counter(r.tenant_id for r in (*self.running, *arriving)))
        self._check_present(self.running, RequestStatus.RUNNING)
        self._check_present(arriving, RequestStatus.SWAPPING_IN)
        sharing = {r.request_id for r in self._waiting if self._kv.holds(r.request_id)}
        if sharing != self._sharing.keys():
            raise IntegrityError("the wrong requests count as holding a prompt while they wait")

    def _check_present(self, requests: Iterable[Request], status: RequestStatus) -> None:
        is_arriving = status is RequestStatus.SWAPPING_IN
        for request in requests:
            if request.status is not status or not self._kv.holds(request.request_id):
                raise IntegrityError(
                    f"{request.request_id} is {request.status.name}, not {status.name} with memory"
                )
            if self._switcher.is_arriving(request) is not is_arriving:
                raise IntegrityError(f"KV is on its way to {request.request_id}, or should be")

    def _rank(self, view: SchedulingView, *, anew: bool = False) -> None:
        """Put those who run in rank order, unless they are in it already."""
        running = self.running
        if running is self._ranked and not anew:
            return
        keys = rank_all(self._policy, running, view)
        order = sorted(range(len(running)), key=keys.__getitem__)
        self.running = self._ranked = [running[index] for index in order]

    def _make_room(self, request: Request, view: SchedulingView) -> None:
        """Free some memory: shared prompts of requests that do not run yet, else a victim."""
        if self.take_back_prompt():
            return
        victim = self._requests[self._victims()[0].request_id]
        cause = f"{request.request_id} needed a block and none was free or evictable"
        self.preempt(victim, view, WaitReason.MEMORY, cause)

    def _outranked(self, candidate: Request, view: SchedulingView) -> list[Request]:
        """Return who has to go for a waiting request to come in; nobody, if that is not enough."""
        self._rank(view)
        num_needed = self._kv.blocks_needed(candidate, candidate.num_tokens)
        num_available = self._kv.num_available_blocks
        victims: list[Request] = []
        for resident in self._victims():
            if not self._policy.displaces(candidate, resident, view):
                break
            victim = self._requests[resident.request_id]
            if not self._switcher.may_leave(victim, view.now_s):
                continue
            victims.append(victim)
            num_available += self._kv.num_held_blocks(victim.request_id)
            num_left = self.num_present - len(victims)
            memory = AdmissionView(num_needed, num_available, num_left)
            if num_left == 0 or self._policy.admit(candidate, memory):
                return victims
        return []

    def _victims(self) -> Sequence[RequestView]:
        """Return who gives up memory, first victim first."""
        if self.before_look is not None:
            self.before_look()
        return self._policy.victims(self.running)

    def _send_for(self, request: Request, num_cached: int, now_s: float) -> None:
        """A request has memory, into which its KV is being loaded."""
        self.arriving[request.request_id] = (request, num_cached)
        self._account.swap(request, self._switcher.num_arriving_bytes(request))
        if not self._switcher.may_arrive_beside(request, len(self.running), now_s):
            self._awaited.append(request)
        request.record(EventKind.SWAPPING_IN, now_s, self._switcher.arriving_words(request))
        request.move_to(RequestStatus.SWAPPING_IN)

    def _land(self, now_s: float) -> None:
        """Start the requests whose KV has arrived."""
        for request_id, arrival in self._switcher.landed().items():
            request, num_cached = self.arriving.pop(request_id)
            if arrival.failure is not None:
                num_cached = arrival.num_tokens_before
            self._start(request, num_cached, now_s, arrival.failure)
            self._kv.commit(request, num_cached)

    def _start(
        self, request: Request, num_cached: int, now_s: float, failure: str | None = None
    ) -> None:
        """Let a request run that has memory and KV for its first tokens."""
        self.running = [*self.running, request]
        request.resident_since_s = now_s
        request.num_computed_tokens = max(request.num_computed_tokens, num_cached)
        request.num_tokens_when_admitted = request.num_tokens
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
        request.num_settled_tokens = max(request.num_settled_tokens, request.num_computed_tokens)
        self._account.promise(request)
        loss = self._switcher.back(request, now_s)
        resumed = request.num_preemptions > 0
        if not resumed:
            self._started.append(request.request_id)
        request.move_to(RequestStatus.RUNNING)
        request.record(
            EventKind.RESUMED if resumed else EventKind.SCHEDULED,
            now_s,
            f"{request.num_computed_tokens} of {request.num_tokens} tokens already have KV"
            + (f"; loading more failed: {failure}" if failure is not None else "")
            + (f"; keeping more failed: {loss}" if loss is not None else ""),
            num_tokens=request.num_computed_tokens,
        )
