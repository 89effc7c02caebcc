"""Whatever comes and goes: budgets hold, decodes are served, prefill moves, nothing is lost."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from evenflow.core.clock import VirtualClock
from evenflow.core.ids import DEFAULT_TENANT, TenantId
from evenflow.core.sampling import SamplingParams
from evenflow.engine.completions import completion_id
from evenflow.fairness.tenants import Tenant, TenantDirectory, TenantLimits
from evenflow.scheduling.plan import StepPlan
from support.scripted_engine import make_engine, scripted_token

TOKEN_BUDGET = 12
MAX_NUM_SEQS = 5
MAX_RUNNING = {TenantId("one"): 1, TenantId("two"): 2}
TENANTS = [*MAX_RUNNING, DEFAULT_TENANT]


class SchedulerMachine(RuleBasedStateMachine):
    """Drives an engine with little memory, and follows every completion from outside."""

    @initialize(
        policy=st.sampled_from(["fcfs", "priority", "vtc", "fair"]),
        num_blocks=st.sampled_from([12, 16, 40]),
        caching=st.booleans(),
    )
    def start(self, policy: str, num_blocks: int, caching: bool) -> None:
        self.clock = VirtualClock()
        self.engine, self.executor = make_engine(
            clock=self.clock,
            directory=TenantDirectory(
                Tenant(id_, TenantLimits(max_running=most)) for id_, most in MAX_RUNNING.items()
            ),
            policy=policy,
            num_blocks=num_blocks,
            block_size=4,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=TOKEN_BUDGET,
            max_model_len=48,
            enable_prefix_caching=caching,
        )
        for tenant_id in TENANTS:
            self.engine.sessions.open(tenant_id, 20.0, "session")
        self.count = 0
        self.expected: dict[tuple[str, int], list[int]] = {}
        self.received: dict[tuple[str, int], list[int]] = {}
        self.ended: dict[tuple[str, int], str] = {}
        self.tenants: dict[str, TenantId] = {}
        self.deadlines: dict[str, float] = {}
        self.had_kv: dict[str, set[int]] = {}
        self.prompt_tokens: Counter[TenantId] = Counter()
        execute = self.executor.execute
        self.executor.execute = lambda plan: self._charge(plan) or execute(plan)

    @rule(
        length=st.integers(1, 40),
        family=st.integers(0, 2),
        max_tokens=st.integers(1, 20),
        priority=st.integers(0, 3),
        n=st.sampled_from([1, 1, 3]),
        tenant_id=st.sampled_from(TENANTS),
        time_s=st.sampled_from([None, None, 0, 3, 10, 30]),
        session_id=st.sampled_from([None, "session"]),
    )
    def add(
        self,
        length: int,
        family: int,
        max_tokens: int,
        priority: int,
        n: int,
        tenant_id: TenantId,
        time_s: int | None,
        session_id: str | None,
    ) -> None:
        name = f"r{self.count}"
        self.count += 1
        prompt = [family * 100 + position for position in range(length)]
        params = SamplingParams(max_tokens=max_tokens, n=n)
        deadline_s = None if time_s is None else self.clock.now_s() + time_s
        self.engine.add_request(
            name,
            prompt,
            params,
            priority=priority,
            tenant_id=tenant_id,
            deadline_s=deadline_s,
            session_id=session_id,
        )
        self.tenants[name] = tenant_id
        if deadline_s is not None:
            self.deadlines[name] = deadline_s
        stop = min(length + max_tokens, 48)
        for index in range(n):
            own_id = completion_id(name, index)
            self.expected[name, index] = [scripted_token(own_id, at) for at in range(length, stop)]
            self.received[name, index] = []

    @precondition(lambda self: self.engine.scheduler.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        own_id = data.draw(st.sampled_from(sorted(self.engine.scheduler.requests)))
        assert self.engine.abort(own_id.split("#")[0])

    @rule()
    def pause_or_resume(self) -> None:
        engine = self.engine
        (engine.resume if engine.is_paused else engine.pause)()

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    def _charge(self, plan: StepPlan) -> None:
        """Count the prompt tokens that have KV for the first time, one by one."""
        for request, count in zip(plan.requests, plan.num_new_tokens, strict=True):
            had_kv = self.had_kv.setdefault(request.request_id, set())
            had_kv |= set(range(request.num_computed_tokens))
            shared = set(range(request.num_prompt_tokens - 1))
            if request.parent_id and shared <= self.had_kv.get(request.parent_id, set()):
                had_kv |= shared
            new = set(range(request.num_computed_tokens, request.num_computed_tokens + count))
            new -= had_kv
            self.prompt_tokens[request.tenant_id] += sum(
                position < request.num_prompt_tokens for position in new
            )
            had_kv |= new

    def _step(self) -> None:
        scheduler = self.engine.scheduler
        self.clock.advance(1.0)
        decoding = [
            r.request_id for r in scheduler.running if r.num_tokens - r.num_computed_tokens == 1
        ]
        late = {n for n, deadline_s in self.deadlines.items() if deadline_s <= self.clock.now_s()}
        decoding = [own_id for own_id in decoding if own_id.split("#")[0] not in late]
        preempted_before = scheduler.num_preemptions
        num_recorded = len(self.executor.steps)
        for delta in self.engine.step():
            key = (delta.request_id, delta.index)
            assert key not in self.ended
            if delta.token_id is not None:
                self.received[key].append(delta.token_id)
            if delta.finish_reason:
                self.ended[key] = delta.finish_reason
                assert (delta.finish_reason == "timeout") <= (delta.request_id in late)
        assert not late & {own_id.split("#")[0] for own_id in scheduler.requests}
        if len(self.executor.steps) == num_recorded:
            return
        assert not self.engine.is_paused
        plan = self.executor.steps[-1]
        assert sum(plan.values()) <= TOKEN_BUDGET
        assert len(plan) <= MAX_NUM_SEQS
        if scheduler.num_preemptions == preempted_before:
            assert all(plan.get(own_id) == 1 for own_id in decoding), "a decode was passed over"
        unfinished_prefill = [
            r for r in scheduler.running if r.num_computed_tokens < r.num_tokens - 1
        ]
        if unfinished_prefill:
            assert sum(plan.values()) == TOKEN_BUDGET, "tokens were left over beside a prefill"

    @invariant()
    def integrity(self) -> None:
        if hasattr(self, "engine"):
            self.engine.scheduler.check_integrity()

    @invariant()
    def tenants_are_counted(self) -> None:
        if not hasattr(self, "engine"):
            return
        scheduler = self.engine.scheduler
        states = scheduler.tenant_states()
        running = Counter(request.tenant_id for request in scheduler.running)
        assert all(running[tenant_id] <= most for tenant_id, most in MAX_RUNNING.items())
        assert {id_: s.num_running for id_, s in states.items() if s.num_running} == running
        live = Counter(request.tenant_id for request in scheduler.requests.values())
        waiting = {id_: s.num_waiting_by_reason.total() for id_, s in states.items()}
        assert +Counter(waiting) == live - running
        assert scheduler.preemption_counts.total() == scheduler.num_preemptions
        assert +Counter(scheduler.service.num_prompt_tokens) == +self.prompt_tokens
        output: Counter[TenantId] = Counter()
        for (name, _), tokens in self.received.items():
            output[self.tenants[name]] += len(tokens)
        assert scheduler.service.num_output_tokens == +output

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.resume()
        for _ in range(5000):
            if not self.engine.has_work:
                break
            self._step()
        assert not self.engine.has_work, "the engine does not come to an end"
        for key, tokens in self.expected.items():
            if self.ended[key] in ("abort", "timeout"):
                assert self.received[key] == tokens[: len(self.received[key])]
            else:
                assert (self.received[key], self.ended[key]) == (tokens, "length")
        for tenant_id in TENANTS:
            self.engine.sessions.release(tenant_id, "session")
        kv = self.engine.scheduler.kv
        kv.reset_prefix_cache()
        assert kv.stats().num_free == kv.num_blocks


SchedulerMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=25, deadline=None, derandomize=True
)
TestSchedulerMachine = SchedulerMachine.TestCase
