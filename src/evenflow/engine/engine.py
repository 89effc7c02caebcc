"""The loop: schedule, execute, update, emit. Nothing else drives the system."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from evenflow.core.clock import Clock
from evenflow.core.errors import InvalidRequestError
from evenflow.core.ids import DEFAULT_TENANT, RequestId, TenantId
from evenflow.core.pooling import PoolingParams
from evenflow.core.request import Request
from evenflow.core.rng import derive_seed
from evenflow.core.sampling import SamplingParams
from evenflow.core.slo import Slo
from evenflow.core.status import RequestStatus
from evenflow.core.structured import TokenGrammar
from evenflow.engine.completions import CompletionTable
from evenflow.engine.explain import Explanation, explain
from evenflow.engine.limits import ModelLimits
from evenflow.engine.outputs import Delta
from evenflow.engine.progress import CompletionProgress
from evenflow.engine.sessions import Session, SessionTable
from evenflow.execution.executor import Executor
from evenflow.scheduling.following import follow
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult, of_running
from evenflow.scheduling.scheduler import Scheduler
from evenflow.tokenization.detokenizer import IncrementalDetokenizer


@dataclass(slots=True)
class StepTimes:
    """Seconds spent in each verb since the engine was built, and how often.

    Attributes:
        schedule_s: planning.
        execute_s: computing and sampling.
        update_s: advancing requests and memory, detokenising, looking for stop strings.
        emit_s: building what callers get.
        num_steps: steps that computed something.
        num_tokens: tokens they computed.
        num_requests: the sum over steps of the requests they computed tokens for.
    """

    schedule_s: float = 0.0
    execute_s: float = 0.0
    update_s: float = 0.0
    emit_s: float = 0.0
    num_steps: int = 0
    num_tokens: int = 0
    num_requests: int = 0


class _Flight(NamedTuple):
    """A step under way, and the function that waits for what comes out of it."""

    plan: StepPlan
    finish: Callable[[], StepResult]


class Engine:
    """Serves requests with one scheduler and one executor. Call it from one thread.

    Args:
        scheduler: decides.
        executor: computes.
        clock: the only source of time.
        limits: what requests may ask for.
        detokenizer: called with `skip_special_tokens`, returns a fresh detokeniser; None for an
            engine that deals in tokens only.
        salt_per_tenant: keep the prefix caches of tenants apart.
        only_ends: report only the last delta of each completion.
        start: starts a step and returns a function that waits for what comes out of it. With it,
            the next step is started before this one is over where nothing is to be decided in
            between (`scheduling.following`), and is computed while callers get their tokens.

    Attributes:
        sessions: conversations whose KV is kept between turns. However much they keep on the
            device, the longest request always fits.
        started: completions that ran for the first time in the last step.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Clock,
        limits: ModelLimits,
        *,
        detokenizer: Callable[[bool], IncrementalDetokenizer] | None = None,
        salt_per_tenant: bool = False,
        only_ends: bool = False,
        start: Callable[[StepPlan], Callable[[], StepResult]] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.limits = limits
        self.times = StepTimes()
        self.started: list[RequestId] = []
        self._executor = executor
        self._start = start
        # The step that was started ahead, and when the one before it was over.
        self._flight: _Flight | None = None
        self._executed_s = 0.0
        self._clock = clock
        self._detokenizer = detokenizer
        self._salt_per_tenant = salt_per_tenant
        self._only_ends = only_ends
        self._completions = CompletionTable()
        self._num_added = 0
        kv = scheduler.kv
        longest_blocks = -(-limits.max_model_len // kv.block_size)
        self.sessions = SessionTable(kv, max_pinned_blocks=max(0, kv.num_blocks - longest_blocks))
        self._session_of: dict[RequestId, Session] = {}
        scheduler.before_free = self._keep_for_session

    @property
    def has_work(self) -> bool:
        """Whether a call of `step` has something to do or to report."""
        return self.scheduler.has_work or self._completions.has_ended or self._flight is not None

    @property
    def is_paused(self) -> bool:
        """Whether steps do nothing; requests stay where they are, with their memory."""
        return self.scheduler.is_paused and self._flight is None

    def pause(self) -> None:
        """Have steps plan nothing until `resume`."""
        self.scheduler.pause(self._clock.now_s())

    def resume(self) -> None:
        """Have steps plan again."""
        self.scheduler.resume(self._clock.now_s())

    @property
    def next_expiry_s(self) -> float:
        """No deadline passes and no pin ends before this; infinite if there are none."""
        return min(self._completions.next_deadline_s, self.sessions.next_expiry_s)

    @property
    def live_requests(self) -> Iterable[Request]:
        """Completions that have not ended."""
        return self.scheduler.requests.values()

    def step(self) -> list[Delta]:
        """Run one step and return what it added to each completion."""
        clock = self._clock.now_s
        started_s = clock()
        if started_s >= self.next_expiry_s:
            self.expire(started_s)
        plan, finish = self._next_flight(started_s)
        scheduled_s = clock()
        result = finish()
        executed_s = clock()
        begun_s = self._executed_s if plan.follows else scheduled_s
        self.scheduler.switcher.after_step(plan, executed_s - begun_s)
        self._executed_s = executed_s
        if plan.follows:
            plan, result = of_running(plan, result)
        sampled = self._update(plan, result, executed_s)
        updated_s = clock()
        deltas = self._emit(sampled, result)
        self.started = plan.started
        times = self.times
        times.schedule_s += scheduled_s - started_s
        times.execute_s += executed_s - scheduled_s
        times.update_s += updated_s - executed_s
        times.emit_s += clock() - updated_s
        times.num_steps += bool(plan.requests)
        times.num_tokens += plan.num_tokens
        times.num_requests += len(plan.requests)
        return deltas

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams | PoolingParams,
        *,
        grammar: TokenGrammar | None = None,
        priority: int = 0,
        tenant_id: TenantId = DEFAULT_TENANT,
        cache_salt: str = "",
        slo: Slo | None = None,
        deadline_s: float | None = None,
        session_id: str | None = None,
        arrival_s: float | None = None,
    ) -> None:
        """Queue a request. Completions 2..n share the KV of the first one's prompt.

        Args:
            request_id: unique among live requests.
            prompt_token_ids: at least one token.
            params: how to sample; or `PoolingParams` for an embedding of the prompt, which comes
                with the one delta that ends the request.
            grammar: at its beginning, what `params.structured` was compiled to. It is not changed.
            priority: lower is earlier, under the priority policy.
            tenant_id: whom the request is for.
            cache_salt: requests with different salts never share cached blocks.
            slo: what its latencies are measured against.
            deadline_s: when to end it, done or not, on the engine's clock.
            session_id: the tenant's session whose next turn this is. Of several completions the
                first one is kept.
            arrival_s: when it came, on the engine's clock, if that was before now.

        Raises:
            InvalidRequestError: a value is out of range, with its name.
            ContextLengthError: the prompt can never fit, with the numbers.
            DuplicateRequestError: the id is in use.
            SessionNotFoundError: the tenant has no such session.
        """
        self.limits.check(prompt_token_ids, params)
        pooling: PoolingParams | None = None
        if isinstance(params, PoolingParams):
            pooling, params = params, SamplingParams()
        params = _under_grammar(params, grammar)
        ids = self._completions.unused_ids(request_id, params.n)
        _check_deadline(deadline_s)
        if session_id is not None:
            self._session_of[ids[0]] = self.sessions.get(tenant_id, session_id)
        now_s = self._clock.now_s()
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self.limits.eos_token_ids
        if self._salt_per_tenant:
            cache_salt = f"{tenant_id}\x1f{cache_salt}"
        max_num_tokens = self.limits.max_model_len
        if pooling is not None:
            max_num_tokens = len(prompt_token_ids)
        elif params.max_tokens is not None:
            max_num_tokens = min(max_num_tokens, len(prompt_token_ids) + params.max_tokens)
        for index, own_id in enumerate(ids):
            request = Request(
                own_id,
                prompt_token_ids,
                params,
                max_num_tokens=max_num_tokens,
                arrival_s=now_s if arrival_s is None else arrival_s,
                sequence_number=self._num_added,
                priority=priority,
                tenant_id=tenant_id,
                parent_id=ids[0] if index else None,
                cache_salt=cache_salt,
                stop_token_ids=stop_ids,
                pooling=pooling,
                slo=slo,
                deadline_s=deadline_s,
                session_id=None if index else session_id,
                grammar=grammar.fork() if grammar is not None else None,
            )
            if index and params.seed is not None:
                request.seed = derive_seed(params.seed, index)
            self._queue(request_id, index, request, now_s)

    def report(self, ended: Iterable[Request]) -> list[Delta]:
        """Return the last deltas of completions that the scheduler has ended between two steps."""
        deltas = []
        for request in ended:
            progress = self._completions.live[request.request_id]
            deltas.append(progress.delta(request.token_ids[-1], None))
            self._completions.forget(progress)
        return deltas

    def abort(self, request_id: str, cause: str = "aborted by the caller") -> bool:
        """End a request and all its completions, and free what they hold at once.

        Args:
            request_id: as it was added.
            cause: why, in words for whoever asks later.

        Returns:
            Whether there was anything to end. The next step reports it.
        """
        now_s = self._clock.now_s()
        victims = self._completions.of_request(request_id)
        for progress in victims:
            self.scheduler.finish(progress.request, RequestStatus.FINISHED_ABORTED, now_s, cause)
            self._completions.retire(progress)
        return bool(victims)

    def set_priority(self, request_id: str, priority: int) -> bool:
        """Change the priority of a request and all its completions while they wait or run.

        Args:
            request_id: as it was added.
            priority: lower is earlier, under the priority policy.

        Returns:
            Whether there is such a request.
        """
        now_s = self._clock.now_s()
        completions = self._completions.of_request(request_id)
        for progress in completions:
            self.scheduler.set_priority(progress.request, priority, now_s)
        return bool(completions)

    def expire(self, now_s: float) -> None:
        """End what is over: requests whose deadline has passed, the pins of sessions.

        A step begins with this, and the next one reports the requests.
        """
        self.sessions.expire(now_s)
        for progress, deadline_s in self._completions.overdue(now_s):
            request = progress.request
            cause = (
                f"its {deadline_s - request.arrival_s:.3f} s were over after "
                f"{request.num_output_tokens} output tokens"
            )
            self.scheduler.finish(request, RequestStatus.FINISHED_EXPIRED, now_s, cause)
            self._completions.retire(progress)

    def rest(self) -> bool:
        """Do what there is to do without requests.

        Returns:
            Whether to call this again soon, because KV is being copied to a lower tier.
        """
        self.expire(self._clock.now_s())
        return self.scheduler.switcher.rest()

    def explain(self, request_id: str) -> Explanation | None:
        """Say where the time of a live completion has gone; None if there is none of this id."""
        request = self.scheduler.requests.get(RequestId(request_id))
        if request is None:
            return None
        now_s = self._clock.now_s()
        return explain(
            self.scheduler.timeline(request, now_s),
            request_id=request_id,
            tenant_id=request.tenant_id,
            status=request.status.name.lower(),
            arrival_s=request.arrival_s,
            now_s=now_s,
            num_computed_tokens=request.num_computed_tokens,
        )

    def _queue(self, user_id: str, index: int, request: Request, now_s: float) -> None:
        self.scheduler.add(request, now_s)
        self._num_added += 1
        detokenizer = None
        if self._detokenizer is not None:
            detokenizer = self._detokenizer(request.sampling.skip_special_tokens)
        self._completions.add(CompletionProgress(user_id, index, request, detokenizer))

    def _next_flight(self, now_s: float) -> _Flight:
        """Return the step that runs, or else start one; and start the one after it if possible."""
        flight, self._flight = self._flight, None
        if flight is None:
            plan = self.scheduler.schedule(now_s)
            if not plan.num_tokens:
                return _Flight(plan, partial(StepResult, []))
            if self._start is None:
                return _Flight(plan, partial(self._executor.execute, plan))
            flight = _Flight(plan, self._start(plan))
        if self._start is not None:
            following = follow(self.scheduler, flight.plan, now_s)
            if following is not None:
                self._flight = _Flight(following, self._start(following))
        return flight

    def _keep_for_session(self, request: Request, now_s: float) -> None:
        """A request has ended and still holds its blocks: let its session know of them."""
        session = self._session_of.pop(request.request_id, None)
        if session is not None and request.status.finish_reason in ("stop", "length"):
            self.sessions.keep(session, request, now_s)

    def _update(
        self, plan: StepPlan, result: StepResult, now_s: float
    ) -> list[tuple[CompletionProgress, int]]:
        """Advance requests and memory, read the new tokens, finish who is done."""
        for index, reason in result.failures.items():
            request = plan.requests[index]
            self.scheduler.finish(request, RequestStatus.FINISHED_ERROR, now_s, reason)
            self._completions.retire(self._completions.live[request.request_id])
        self.scheduler.update(plan, result.token_ids, now_s)
        for index, hidden_sum in result.hidden_sums.items():
            request = plan.requests[index]
            request.hidden_sum = hidden_sum
            if request.is_finished:
                self._completions.retire(self._completions.live[request.request_id])
        self._read_prompt_logprobs(plan, result)
        live = self._completions.live
        only_ends = self._only_ends and self._detokenizer is None and not result.completed
        sampled = []
        for index, (request, token_id) in enumerate(
            zip(plan.requests, result.token_ids, strict=True)
        ):
            if token_id == NO_TOKEN or (only_ends and not request.is_finished):
                continue
            progress = live[request.request_id]
            progress.read(token_id)
            if progress.matched is not None and not progress.request.is_finished:
                self.scheduler.finish(
                    progress.request, RequestStatus.FINISHED_STOPPED, now_s, "stop string"
                )
            sampled.append((progress, index))
        for index in result.completed:
            request = plan.requests[index]
            if not request.is_finished:
                self.scheduler.finish(
                    request, RequestStatus.FINISHED_STOPPED, now_s, "its grammar is complete"
                )
        return sampled

    def _emit(
        self, sampled: list[tuple[CompletionProgress, int]], result: StepResult
    ) -> list[Delta]:
        """Build what callers get; forget who has ended."""
        deltas = [progress.delta(None, None) for progress in self._completions.take_ended()]
        token_ids = result.token_ids
        logprobs = result.logprobs
        for progress, index in sampled:
            is_finished = progress.request.is_finished
            if is_finished or not self._only_ends:
                deltas.append(progress.delta(token_ids[index], logprobs.get(index)))
            if is_finished:
                self._completions.forget(progress)
        return deltas

    def _read_prompt_logprobs(self, plan: StepPlan, result: StepResult) -> None:
        for index, entries in result.prompt_logprobs.items():
            request = plan.requests[index]
            progress = self._completions.live.get(request.request_id)
            if progress is not None:
                first = request.num_computed_tokens - plan.num_new_tokens[index] + 1
                progress.prompt_logprobs.update(enumerate(entries, start=first))


def _check_deadline(deadline_s: float | None) -> None:
    if deadline_s is not None and not math.isfinite(deadline_s):
        raise InvalidRequestError(
            "deadline_s must be a time", param="deadline_s", why=f"it is {deadline_s!r}"
        )


def _under_grammar(params: SamplingParams, grammar: TokenGrammar | None) -> SamplingParams:
    """Return what is left of the parameters when a grammar decides where the text may end."""
    if (params.structured is None) != (grammar is None):
        raise InvalidRequestError(
            "structured and the grammar do not go together",
            param="structured",
            fix="Pass grammar=runtime.compile_grammar(params)",
        )
    if grammar is None:
        return params
    return replace(params, stop=(), stop_token_ids=(), min_tokens=0, ignore_eos=False)
