"""Takes many steps at once while there is nothing to decide.

When every running request decodes, nobody can be started and memory suffices, each step computes
one token of each request, and the next step is like it until somebody ends; if nobody waits, it
goes on like that without them. A coast takes such steps together, and touches a request only where
its next block is begun or filled and where it ends, in the very order in which single steps would.

    step        1   2   3   4   5   6   7   8
    request a   .   .   B   .   .   .   .   .    .  a token     B  a block is begun
    request b   .   .   .   .   E                E  the request ends
    request c   .   .   .   B   .   .   .   .    p  some of its prompt is computed
    request d                       p   p   .
                --- alike ----- - single -- alike

A step in which somebody starts or computes a prompt is a single one. Those who decode coast beside
it: the scheduler counts them, but the plan lists only the others. They land before a policy looks
at how far they are, to say who gives up memory, and before a step that lacks memory for them. What
a coast leaves behind is the same as what single steps do, block for block.

Under a policy that ranks tenants by what they were given, their order may change with every token.
While nobody waits that decides only who comes first within a step, where their ranks are looked up.

It rests on what every policy promises: a running request that lacks one token gets it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from heapq import heappop, heappush

from evenflow.core.ids import TenantId
from evenflow.core.request import Request
from evenflow.core.status import RequestStatus
from evenflow.scheduling.following import stands_still
from evenflow.scheduling.policy import RankKey, rank_all
from evenflow.scheduling.scheduler import Scheduler

_ANY_TIME_S = 0.0  # for policies whose ranks do not change with time

_Place = tuple[RankKey, int]
# (the request's place, is it the end, request): a block is begun before a step, or full after it,
# or the request ends with it.
_Event = tuple[_Place, bool, Request]


class Coast:
    """Those who decode, and what will happen to them.

    Whoever coasts must know that no request ends by a token, by a deadline or from outside, and
    that all tokens of an answer are alike. Until it lands, those who coast lack tokens they were
    given.

    Args:
        scheduler: whose requests; all of them are up to date.

    Attributes:
        num_context_tokens: KV entries that they read and write in the next step.
        peak_blocks: most blocks in use at the end of a step so far.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._view = scheduler.view(_ANY_TIME_S)
        self._ended: list[Request] = []
        self.peak_blocks = 0
        self._begin()

    def _begin(self) -> None:
        """Let everybody coast who decodes."""
        scheduler = self._scheduler
        self._running = scheduler.running
        self._num_preemptions = scheduler.num_preemptions
        self._step = 0
        self._base: dict[Request, int] = {}  # step n computes token `base + n`
        self._num_of_tenant: Counter[TenantId] = Counter()
        self._num_charged = 0  # steps whose tokens tenants are charged for
        # By step modulo the size of a block: that many steps are between two blocks of a request.
        self._begins: list[list[_Event]] = [[] for _ in range(scheduler.kv.block_size)]
        self._fulls: list[list[_Event]] = [[] for _ in range(scheduler.kv.block_size)]
        self._ends: list[tuple[int, _Event]] = []  # a heap by step
        self._num_over = 0  # steps for which all that was done
        # What is left to do after a single step, in order, and where each request stands in that.
        self._due: deque[_Event] | None = None
        self._places: dict[Request, int] = {}
        self.num_context_tokens = 0
        if _may_coast(scheduler):
            for request in scheduler.running:
                self._join(request)

    def _join(self, request: Request) -> None:
        """Let a request coast if it decodes."""
        num_tokens = len(request.token_ids)
        is_behind = request.num_computed_tokens + 1 < num_tokens
        if is_behind or num_tokens == request.num_tokens_when_admitted:
            return
        place = self._place(request)
        self._base[request] = base = num_tokens - 1 - self._step
        self._num_of_tenant[request.tenant_id] += 1
        self.num_context_tokens += num_tokens
        for events in self._blocks_of(base):
            insort(events, (place, False, request))
        heappush(self._ends, (request.max_num_tokens - 1 - base, (place, True, request)))

    def _blocks_of(self, base: int) -> list[list[_Event]]:
        """Return where it stands when the blocks of a request begin, and fill if that matters."""
        kv = self._scheduler.kv
        begins = self._begins[(1 - base) % kv.block_size]
        if not kv.enable_prefix_caching:
            return [begins]
        return [begins, self._fulls[-base % kv.block_size]]

    def max_steps(self) -> int:
        """Return how many steps from now on are alike, the one in which somebody ends included."""
        scheduler = self._scheduler
        if not self._ends or len(self._base) != len(scheduler.running):
            return 0
        if scheduler.running is not self._running or not (
            _may_coast(scheduler) and stands_still(scheduler)
        ):
            return 0
        return self._steps_within_memory(self._ends[0][0] - self._step)

    def take(self, num_steps: int, now_s: float) -> list[Request]:
        """Take steps that are alike, and return who ended in the last one.

        Args:
            num_steps: at most `max_steps`.
            now_s: when the last one is over.

        Raises:
            IntegrityError: there was not enough memory.
        """
        self._advance(num_steps)
        if self._ends[0][0] == self._step:
            self._run(self._step - 1, now_s)
            self._note_peak()
        self._run(self._step, now_s)
        self._note_peak()
        self._charge(self._step)
        return self._take_ended()

    def begin_single(self) -> None:
        """A single step follows, beside which those who decode coast."""
        scheduler = self._scheduler
        if scheduler.running is not self._running or not _may_coast(scheduler):
            self.land()
            self._begin()
        residents = scheduler.residents
        residents.coasting = set(self._base)
        residents.num_coasting_tokens = self.num_context_tokens - len(self._base)
        if self._steps_within_memory(1):
            self._begin_blocks(self._step + 1)
            residents.before_look = self._land_before_look
        else:
            self.land()  # the scheduler has to see who needs room
        self._advance(1)
        scheduler.before_turn = self._take_turn

    def end_single(self, now_s: float) -> list[Request]:
        """The single step is over: return who ended of those who coasted beside it."""
        scheduler = self._scheduler
        for event in self._after_single():
            self._happen(event, self._step, now_s)
        self._due = None
        self._charge(self._step)
        scheduler.residents.coasting = set()
        scheduler.residents.before_look = None
        scheduler.before_turn = None
        self._running = scheduler.running
        if scheduler.num_preemptions == self._num_preemptions:
            for request in scheduler.plan.requests:
                if request.status is RequestStatus.RUNNING:
                    self._join(request)
        else:
            self.land()
            self._begin()
        return self._take_ended()

    def land(self) -> None:
        """Write everybody's tokens."""
        self._write_all(self._step)

    def _advance(self, num_steps: int) -> None:
        self._step += num_steps
        self.num_context_tokens += num_steps * len(self._base)

    def _charge(self, step: int) -> None:
        """Charge tenants for the tokens of those who coast, up to those of a step."""
        num_steps, self._num_charged = step - self._num_charged, step
        if num_steps:
            for tenant_id, num_requests in self._num_of_tenant.items():
                self._scheduler.service.num_output_tokens[tenant_id] += num_steps * num_requests

    def _land_before_look(self) -> None:
        """A single step is being planned, and it matters how far everybody is."""
        if self._scheduler.num_preemptions == self._num_preemptions:
            self._write_all(self._step - 1)  # else that was done, before the first was preempted

    def _take_turn(self, request: Request, now_s: float) -> None:
        """In a single step it is the turn of a request that does not coast."""
        due = self._after_single()
        while due and self._places[due[0][-1]] < self._places[request]:
            self._happen(due.popleft(), self._step, now_s)

    def _after_single(self) -> deque[_Event]:
        """Return what is left to do after a single step, in the order in which it was planned."""
        if self._due is None:
            self._drop_preempted()
            self._num_over = self._step
            due = [event for event in self._due_after(self._step) if event[-1] in self._base]
            running = self._scheduler.running if due else ()
            self._places = places = {request: place for place, request in enumerate(running)}
            self._due = deque(sorted(due, key=lambda event: (places[event[-1]], event)))
        return self._due

    def _drop_preempted(self) -> None:
        """Let go of those who were preempted in a single step, and had no token in it."""
        scheduler = self._scheduler
        if scheduler.num_preemptions != self._num_preemptions:
            for request in self._base.keys() - scheduler.plan.coasting:
                self._leave(request)

    def _run(self, last_step: int, now_s: float) -> None:
        """Do what single steps would have done, up to a step that is over at a time."""
        begins, fulls, ends = self._begins, self._fulls, self._ends
        for step in range(self._num_over + 1, last_step + 1):
            phase = step % len(begins)
            if begins[phase]:
                self._begin_blocks(step)
            if fulls[phase] or ends[0][0] == step:
                for event in self._by_rank(step, self._due_after(step)):
                    self._happen(event, step, now_s)
        self._num_over = last_step

    def _begin_blocks(self, step: int) -> None:
        """Give a block to each of those who begin one in a step."""
        kv = self._scheduler.kv
        events = self._by_rank(step, self._begins[step % kv.block_size])
        kv.begin_blocks([kv.table(request.request_id) for _, _, request in events])

    def _due_after(self, step: int) -> list[_Event]:
        """Return what happens after a step, by place; who ends is expected no more."""
        due, ends = list(self._fulls[step % len(self._fulls)]), self._ends
        while ends and ends[0][0] == step:
            insort(due, heappop(ends)[1])
        return due

    def _by_rank(self, step: int, events: list[_Event]) -> list[_Event]:
        """Sort the events of a step by the rank that the requests have in it."""
        policy = self._scheduler.policy
        if len(events) < 2 or not policy.ranks_tenants:
            return events
        self._charge(step - 1)
        keys = rank_all(policy, [event[-1] for event in events], self._view)
        return [event for _, event in sorted(zip(keys, events, strict=True))]

    def _happen(self, event: _Event, step: int, now_s: float) -> None:
        """A step is over in which a block was filled, or a request ended."""
        _, is_end, request = event
        if is_end:
            self._end(request, now_s)
        else:
            self._write(request, step)
            self._scheduler.kv.commit(request, request.num_computed_tokens)

    def _end(self, request: Request, now_s: float) -> None:
        self._charge(self._step - 1)
        self._write(request, self._step)
        self.num_context_tokens -= len(request.token_ids)
        self._leave(request)
        self._scheduler.service.num_output_tokens[request.tenant_id] += 1  # of its last step
        self._scheduler.finish(request, RequestStatus.FINISHED_LENGTH, now_s, "length limit")
        self._ended.append(request)

    def _leave(self, request: Request) -> None:
        place = self._place(request)
        for events in self._blocks_of(self._base.pop(request)):
            del events[bisect_left(events, (place,))]
        self._num_of_tenant[request.tenant_id] -= 1
        if not self._num_of_tenant[request.tenant_id]:
            del self._num_of_tenant[request.tenant_id]

    def _take_ended(self) -> list[Request]:
        ended, self._ended = self._ended, []
        return ended

    def _write_all(self, step: int) -> None:
        """Give everybody their tokens up to those of a step."""
        for request in self._base:
            self._write(request, step)

    def _write(self, request: Request, step: int) -> None:
        """Give a request its tokens up to those of a step."""
        num_tokens = self._base[request] + step - request.num_computed_tokens
        request.token_ids += request.token_ids[-1:] * num_tokens
        request.num_computed_tokens += num_tokens

    def _place(self, request: Request) -> _Place:
        """Return where a request stands among those of its tenant, which does not change."""
        (key,) = self._scheduler.policy.rank([request], self._view)
        return key, request.sequence_number

    def _note_peak(self) -> None:
        kv = self._scheduler.kv
        self.peak_blocks = max(self.peak_blocks, kv.num_blocks - kv.num_available_blocks)

    def _steps_within_memory(self, num_steps: int) -> int:
        """Return the largest number up to `num_steps` for which all blocks are to be had."""
        kv = self._scheduler.kv
        if len(self._base) * -(-num_steps // kv.block_size) <= kv.num_available_blocks:
            return num_steps  # even if each request's next token began a block

        def lacks_memory(num_steps: int) -> bool:
            step = self._step + num_steps
            needed = (kv.blocks_needed(r, base + step) for r, base in self._base.items())
            return sum(needed) > kv.num_available_blocks

        return bisect_left(range(1, num_steps + 1), True, key=lacks_memory)


def _may_coast(scheduler: Scheduler) -> bool:
    """Return whether nothing but a request's own tokens concerns those who decode."""
    kv, policy = scheduler.kv, scheduler.policy
    if policy.rank_changes_with_time or policy.charges.held_token_s:
        return False  # it matters how long every single step takes
    return not kv.has_shared_tables and kv.residency is None and not scheduler.is_paused
