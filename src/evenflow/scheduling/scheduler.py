"""Carries out a policy: admits, composes, preempts, and keeps requests and memory in step."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.core.errors import DuplicateRequestError, IntegrityError
from evenflow.core.events import EventKind
from evenflow.core.ids import BlockId, RequestId
from evenflow.core.request import Request
from evenflow.core.status import RequestStatus
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.scheduling.plan import NO_TOKEN, StepPlan
from evenflow.scheduling.policy import AdmissionView, Policy
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
    """

    def __init__(
        self, policy: Policy, kv: KVCacheManager, *, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        self.policy = policy
        self.kv = kv
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.running: list[Request] = []
        self.waiting = WaitingQueue(policy)
        self.requests: dict[RequestId, Request] = {}
        self._siblings: dict[RequestId, list[Request]] = {}
        self.num_preemptions = 0

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
            self._siblings.setdefault(parent.request_id, []).append(request)
            request.record(EventKind.HELD, now_s, f"shares the prompt of {parent.request_id}")
        else:
            self.waiting.push(request, now_s)
            request.record(EventKind.QUEUED, now_s, f"{len(self.waiting) - 1} others waiting")

    def schedule(self, now_s: float) -> StepPlan:
        """Plan the next step. The plan is empty when nothing can run.

        Raises:
            IntegrityError: the policy composed a step that cannot be.
        """
        self._rank_running(now_s)
        num_preempted = self._grow_residents(now_s)
        if not num_preempted and self._admit_waiting(now_s):
            self._rank_running(now_s)
        copies = self._privatise(now_s) if self.kv.has_shared_tables else []
        requests = list(self.running)
        counts = self.policy.compose(requests, self.max_num_batched_tokens)
        self._check_composition(requests, counts)
        if 0 in counts:
            requests = [r for r, count in zip(requests, counts, strict=True) if count]
            counts = [count for count in counts if count]
        table = self.kv.table
        return StepPlan(requests, counts, [table(r.request_id) for r in requests], copies)

    def update(self, plan: StepPlan, token_ids: Sequence[int], now_s: float) -> None:
        """Take in a step: advance everybody, append sampled tokens, finish who is done."""
        commit = self.kv.commit
        for request, count, token_id in zip(
            plan.requests, plan.num_new_tokens, token_ids, strict=True
        ):
            if request.status is not RequestStatus.RUNNING:
                continue
            request.num_computed_tokens += count
            commit(request, request.num_computed_tokens)
            if token_id == NO_TOKEN:
                continue
            tokens = request.token_ids
            if len(tokens) == request.num_prompt_tokens:
                self._first_token(request, now_s)
            tokens.append(token_id)
            if token_id in request.stop_token_ids and self._may_stop(request):
                if token_id in request.sampling.stop_token_ids:
                    request.stop_reason = token_id
                self.finish(request, RequestStatus.FINISHED_STOPPED, now_s, "stop token")
            elif len(tokens) >= request.max_num_tokens:
                self.finish(request, RequestStatus.FINISHED_LENGTH, now_s, "length limit")

    def finish(self, request: Request, status: RequestStatus, now_s: float, cause: str) -> None:
        """End a request and free all it holds at once."""
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request.request_id)
            self._leave_siblings(request)
        request.move_to(status)
        request.record(EventKind.FINISHED, now_s, cause)
        del self.requests[request.request_id]
        if status is RequestStatus.FINISHED_ERROR:
            self.kv.disown(request.request_id)
        self.kv.free(request.request_id)
        self._queue_siblings(request.request_id, now_s)

    def check_integrity(self) -> None:
        """Check that queues, statuses and memory agree.

        Raises:
            IntegrityError: they do not.
        """
        self.kv.check_integrity()
        held = [child for children in self._siblings.values() for child in children]
        queues = [*self.running, *self.waiting, *held]
        ids = [request.request_id for request in queues]
        if sorted(ids) != sorted(self.requests):
            raise IntegrityError("the queues do not hold exactly the live requests", why=str(ids))
        for request in self.running:
            if request.status is not RequestStatus.RUNNING:
                raise IntegrityError(f"{request.request_id} runs as {request.status.name}")
            if not self.kv.holds(request.request_id):
                raise IntegrityError(f"{request.request_id} runs without memory")
        for request in [*self.waiting, *held]:
            if request.status not in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
                raise IntegrityError(f"{request.request_id} waits as {request.status.name}")
            if request.num_computed_tokens and not self.kv.holds(request.request_id):
                raise IntegrityError(f"{request.request_id} counts KV that it does not hold")

    def _rank_running(self, now_s: float) -> None:
        running = self.running
        keys = self.policy.rank(running, now_s)
        order = sorted(range(len(running)), key=keys.__getitem__)
        self.running = [running[index] for index in order]

    def _grow_residents(self, now_s: float) -> int:
        """Give every running request room for its tokens; return how many were preempted."""
        ensure = self.kv.ensure
        before = self.num_preemptions
        for request in tuple(self.running):
            while request.status is RequestStatus.RUNNING and not ensure(
                request.request_id, len(request.token_ids)
            ):
                self._make_room(request, now_s)
        return self.num_preemptions - before

    def _make_room(self, request: Request, now_s: float) -> None:
        """Free some memory: shared prompts of requests that do not run yet, else a victim."""
        if self._reclaim_fork():
            return
        victim = self.requests[self.policy.victims(self.running)[0].request_id]
        self._preempt(
            victim, now_s, f"{request.request_id} needed a block and none was free or evictable"
        )

    def _reclaim_fork(self) -> bool:
        """Take back a shared prompt from a request that does not run yet, if there is one."""
        for waiting in self.waiting:
            if self.kv.holds(waiting.request_id):
                self.kv.free(waiting.request_id)
                waiting.num_computed_tokens = 0
                return True
        return False

    def _preempt(self, request: Request, now_s: float, cause: str) -> None:
        num_blocks = self.kv.num_held_blocks(request.request_id)
        self.kv.free(request.request_id)
        self.running.remove(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        request.move_to(RequestStatus.PREEMPTED)
        request.record(
            EventKind.PREEMPTED, now_s, f"recompute: {cause}; gave back {num_blocks} blocks"
        )
        self.waiting.push(request, now_s)

    def _check_composition(self, requests: list[Request], counts: list[int]) -> None:
        fits = len(counts) == len(requests) and all(
            0 <= count <= len(request.token_ids) - request.num_computed_tokens
            for request, count in zip(requests, counts, strict=True)
        )
        total = sum(counts)
        if not fits or total > self.max_num_batched_tokens or (requests and total == 0):
            raise IntegrityError(
                "the policy composed a step that cannot be",
                why=f"it gave {len(requests)} requests {counts[:8]}... tokens, {total} in all",
                fix="Give each at most what it lacks, within the budget, and somebody at least one",
            )

    def _admit_waiting(self, now_s: float) -> bool:
        """Start waiting requests in rank order until tokens, seats or memory run out.

        Returns:
            Whether anybody was started.
        """
        self.waiting.refresh(now_s)
        num_running = len(self.running)
        demand = sum(len(r.token_ids) - r.num_computed_tokens for r in self.running)
        while (
            self.waiting
            and len(self.running) < self.max_num_seqs
            and demand < self.max_num_batched_tokens
        ):
            request = self.waiting.first()
            if self._admit(request, now_s):
                self.waiting.pop()
                self.running.append(request)
                demand += len(request.token_ids) - request.num_computed_tokens
            elif self.running or not self._reclaim_fork():
                break
        return len(self.running) > num_running

    def _admit(self, request: Request, now_s: float) -> bool:
        kv = self.kv
        num_needed = kv.blocks_needed(request, request.num_tokens)
        memory = AdmissionView(num_needed, kv.num_available_blocks, len(self.running))
        alone = not self.running
        num_cached = None
        if alone or self.policy.admit(request, memory):
            num_cached = kv.admit(request, len(self.running))
        if num_cached is None:
            cause = f"needs {num_needed} blocks, {memory.num_available_blocks} available"
            if request.events[-1].kind is not EventKind.HELD:
                request.record(EventKind.HELD, now_s, cause)
            return False
        request.num_computed_tokens = max(request.num_computed_tokens, num_cached)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
        resumed = request.status is RequestStatus.PREEMPTED
        request.move_to(RequestStatus.RUNNING)
        request.record(
            EventKind.RESUMED if resumed else EventKind.SCHEDULED,
            now_s,
            f"{request.num_computed_tokens} of {request.num_tokens} tokens already have KV",
        )
        return True

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

    def _first_token(self, request: Request, now_s: float) -> None:
        request.record(EventKind.FIRST_TOKEN, now_s, "")
        for child in self._siblings.pop(request.request_id, ()):
            # The child computes the last prompt token itself, to draw its own first token.
            shared = request.num_prompt_tokens - 1
            self.kv.fork(request.request_id, child.request_id, shared)
            child.num_computed_tokens = shared
            self.waiting.push(child, now_s)

    def _queue_siblings(self, parent_id: RequestId, now_s: float) -> None:
        """The parent ended without a computed prompt: its siblings stand on their own."""
        for child in self._siblings.pop(parent_id, ()):
            self.waiting.push(child, now_s)

    def _leave_siblings(self, request: Request) -> None:
        children = self._siblings.get(request.parent_id) if request.parent_id else None
        if children and request in children:
            children.remove(request)

    @staticmethod
    def _may_stop(request: Request) -> bool:
        return len(request.token_ids) - request.num_prompt_tokens >= request.sampling.min_tokens
