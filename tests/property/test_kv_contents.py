"""Whatever a policy decides, every slot that a step reads holds the KV of the right tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evenflow.core.clock import VirtualClock
from evenflow.core.request import RequestView
from evenflow.core.sampling import SamplingParams
from evenflow.engine.completions import completion_id
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.residency import Residency
from evenflow.memory.transfers import Tier
from evenflow.scheduling.policy import (
    AdmissionView,
    Policy,
    RankKey,
    SchedulingView,
    load_policy,
)
from evenflow.scheduling.scheduler import Scheduler
from evenflow.scheduling.switching import SwitchOptions
from support.kv_checking_executor import KVCheckingExecutor
from support.scripted_engine import VOCAB_SIZE, scripted_token
from support.slot_transfers import Slots, SlotTransfers

BLOCK_SIZE = 4
MAX_MODEL_LEN = 48


class ArbitraryPolicy(Policy):
    """Decides by lot, within what the protocol allows."""

    rank_changes_with_time = True

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._num_displaced = 0

    def rank(self, requests: Sequence[RequestView], view: SchedulingView) -> list[RankKey]:
        return [(self._random.random(),) for _ in requests]

    def admit(self, request: RequestView, memory: AdmissionView) -> bool:
        return self._random.random() < 0.8

    def victims(self, residents: Sequence[RequestView]) -> Sequence[RequestView]:
        return self._random.sample(residents, len(residents))

    def displaces(
        self, candidate: RequestView, resident: RequestView, view: SchedulingView
    ) -> bool:
        self._num_displaced += 1  # nobody is ousted for ever
        return self._num_displaced < 100 and self._random.random() < 0.3

    def compose(self, residents: Sequence[RequestView], token_budget: int) -> list[int]:
        counts = [0] * len(residents)
        order = self._random.sample(range(len(residents)), len(residents))
        for index in order:
            missing = residents[index].num_tokens - residents[index].num_computed_tokens
            counts[index] = self._random.randint(0, min(missing, token_budget - sum(counts)))
        if order and not any(counts):
            counts[order[0]] = 1
        return counts


@dataclass
class LowerTiers:
    """What lies below the device, and how unreliable it is."""

    num_host_blocks: int
    num_disk_blocks: int
    failure_rate: float
    seed: int
    by_group: bool
    keep_copies: bool

    def build(self, device: Slots) -> Residency:
        transfers = SlotTransfers(
            device, BLOCK_SIZE, Random(self.seed), failure_rate=self.failure_rate
        )
        disk = LowerTier(Tier.DISK, self.num_disk_blocks) if self.num_disk_blocks else None
        return Residency(
            transfers,
            LowerTier(Tier.HOST, self.num_host_blocks, tenant_share=0.5),
            disk,
            by_group=self.by_group,
            keep_copies=self.keep_copies,
        )


lower_tiers = st.builds(
    LowerTiers,
    num_host_blocks=st.sampled_from([1, 5, 20, 60]),
    num_disk_blocks=st.sampled_from([0, 0, 3, 30]),
    failure_rate=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
    by_group=st.booleans(),
    keep_copies=st.booleans(),
)


class KVContentsMachine(RuleBasedStateMachine):
    """Drives an engine whose executor checks the KV, and follows every completion from outside."""

    @initialize(
        policy=st.sampled_from(["fcfs", "priority", "fair"]) | st.integers(0, 1000),
        num_blocks=st.sampled_from([1, 3, 12, 13, 16, 40]),
        initial_group_blocks=st.sampled_from([1, 4, 60]),
        max_num_seqs=st.sampled_from([1, 4, 6]),
        token_budget=st.sampled_from([7, 20, 60]),
        caching=st.booleans(),
        tiers=st.none() | lower_tiers,
        switching=st.builds(
            SwitchOptions,
            mode=st.sampled_from(["auto", "swap", "recompute"]),
            timing=st.sampled_from(["auto", "beside", "between"]),
            write_back=st.booleans(),
            keep_head=st.booleans(),
        ),
    )
    def start(
        self,
        policy: str | int,
        num_blocks: int,
        initial_group_blocks: int,
        max_num_seqs: int,
        token_budget: int,
        caching: bool,
        tiers: LowerTiers | None,
        switching: SwitchOptions,
    ) -> None:
        self.executor = KVCheckingExecutor(scripted_token, BLOCK_SIZE)
        self.kv = KVCacheManager(
            num_blocks,
            BLOCK_SIZE,
            enable_prefix_caching=caching,
            initial_group_blocks=initial_group_blocks,
            residency=None if tiers is None else tiers.build(self.executor.store),
        )
        self.scheduler = Scheduler(
            load_policy(policy) if isinstance(policy, str) else ArbitraryPolicy(policy),
            self.kv,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=token_budget,
            switching=switching,
        )
        self.max_model_len = min(MAX_MODEL_LEN, num_blocks * BLOCK_SIZE)
        limits = ModelLimits(self.max_model_len, VOCAB_SIZE)
        self.engine = Engine(self.scheduler, self.executor, VirtualClock(), limits)
        self.prompts: list[list[int]] = []
        self.expected: dict[tuple[str, int], tuple[list[int], str]] = {}
        self.received: dict[tuple[str, int], list[int]] = {}
        self.ended: dict[tuple[str, int], str] = {}

    @rule(
        length=st.integers(1, MAX_MODEL_LEN - 1),
        num_shared=st.integers(0, MAX_MODEL_LEN),
        max_tokens=st.integers(1, 20),
        priority=st.integers(0, 3),
        n=st.sampled_from([1, 2, 4]),
        prompt_logprobs=st.sampled_from([None, None, None, 0]),
        failing_index=st.sampled_from([None, None, None, None, 0, 1, 2, 3]),
        fails_at=st.integers(1, MAX_MODEL_LEN),
    )
    def add(
        self,
        length: int,
        num_shared: int,
        max_tokens: int,
        priority: int,
        n: int,
        prompt_logprobs: int | None,
        failing_index: int | None,
        fails_at: int,
    ) -> None:
        name = str(len(self.prompts))
        length = min(length, self.max_model_len - 1)
        prompt = [at if at < num_shared else 100 + at for at in range(length)]
        self.prompts.append(prompt)
        params = SamplingParams(max_tokens=max_tokens, n=n, prompt_logprobs=prompt_logprobs)
        self.engine.add_request(name, prompt, params, priority=priority)
        stop = min(length + max_tokens, self.max_model_len)
        for index in range(n):
            own_id = completion_id(name, index)
            tokens = [scripted_token(own_id, at) for at in range(length, stop)]
            reason = "length"
            if index == failing_index and fails_at < stop:
                self.executor.fails_at[own_id] = fails_at
                tokens = tokens[: max(0, fails_at - length)]
                reason = "error"
            self.expected[name, index] = tokens, reason
            self.received[name, index] = []

    @rule(number=st.integers(0, 40))
    def abort(self, number: int) -> None:
        name = str(number)
        is_live = any(own_id.split("#")[0] == name for own_id in self.scheduler.requests)
        assert self.engine.abort(name) == is_live

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    def _step(self) -> None:
        for delta in self.engine.step():
            key = (delta.request_id, delta.index)
            assert key not in self.ended, "a completion goes on after its end"
            if delta.prompt_logprobs is not None:
                scored = [entry.token_id for entry in delta.prompt_logprobs]
                wanted = self.prompts[int(delta.request_id)][1:]
                assert scored == wanted or (delta.index and not scored)
            if delta.token_id is not None:
                self.received[key].append(delta.token_id)
            if delta.finish_reason:
                self.ended[key] = delta.finish_reason
        self.scheduler.check_integrity()

    @invariant()
    def integrity(self) -> None:
        if hasattr(self, "engine"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(5000):
            if not self.engine.has_work:
                break
            self._step()
        assert not self.engine.has_work, "the engine does not come to an end"
        for key, (tokens, reason) in self.expected.items():
            if self.ended[key] == "abort":
                assert self.received[key] == tokens[: len(self.received[key])]
            else:
                assert (self.received[key], self.ended[key]) == (tokens, reason)
        self.kv.reset_prefix_cache()
        assert self.kv.stats().num_free == self.kv.num_blocks


KVContentsMachine.TestCase.settings = settings(
    max_examples=280, stateful_step_count=40, deadline=None, derandomize=True
)
TestKVContents = KVContentsMachine.TestCase
