"""Conversations with the real model whose requests are switched as often and as roughly as can be.

In every step some running requests are preempted, priorities change, transfers come late, fail or
are torn, copies are dropped, and requests are aborted. Blocks that nobody has are filled with NaN,
on the device and on the host, but for those that a ticket in flight still reads: there the next
owner writes at once, and spoils what is copied unless it waits for that ticket.

Whatever happens, every turn must have the tokens that it has alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from evenflow import LLM, SamplingParams
from evenflow.core.clock import MonotonicClock
from evenflow.core.ids import TenantId
from evenflow.core.request import RequestView
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.disk_blocks import DiskBlocks
from evenflow.execution.kernels.cpu_attention import CpuPagedAttention
from evenflow.execution.torch.kv_store import KVLayout, KVStore
from evenflow.execution.torch.model_runner import ModelRunner
from evenflow.execution.torch.transfers import CpuTransfers
from evenflow.memory.block_pool import BlockPool
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.residency import Residency
from evenflow.memory.transfers import Tier
from evenflow.scheduling.policies.priority import Priority
from evenflow.scheduling.policy import AdmissionView, load_policy
from evenflow.scheduling.scheduler import Scheduler
from evenflow.scheduling.switching import PreemptionMode, SwapTiming, SwitchOptions
from support.faulty_transfers import FaultyTransfers, seeded_faults
from support.preempting import preempt

BLOCK_SIZE = 4
NUM_BLOCKS = 96
NUM_TURNS = 3
MAX_MODEL_LEN = 80
NUM_AT_ONCE = 32

PREEMPT = 0.5
"""Chance that a running request is preempted before a step."""


@dataclass(frozen=True)
class Conversation:
    """What is said, and what the model answers when it has nothing else to do.

    Attributes:
        turns: tokens that each turn adds to what was said before.
        params: how each answer is sampled.
        answers: tokens of each answer, as far as they are known.
    """

    turns: list[list[int]]
    params: list[SamplingParams]
    answers: list[list[int]] = field(default_factory=list)

    def prompt(self, turn: int) -> list[int]:
        """Return all that was said when a turn begins."""
        tokens = []
        for said, answer in zip(self.turns[:turn], self.answers, strict=False):
            tokens += said + answer
        return tokens + self.turns[turn]


@dataclass(frozen=True, kw_only=True)
class Weather:
    """What requests are exposed to, and how they may be switched.

    Attributes:
        seed: of everything that happens by chance.
        layout: of the stores.
        caching: whether requests find each other's blocks on the device.
        keep_head: whether a preempted request's blocks stay on the device until they are needed.
        by_group: whether runs of blocks are copied as one.
        keep_copies: whether copies outlive a return to the device.
        work_ahead: whether blocks are moved ahead of need.
        mode: how requests leave.
        timing: whether copies are made beside the steps.
        num_host_blocks: that the host has.
        num_disk_blocks: that the disk has; 0 for no disk.
        stall: share of the transfers that begin 50 ms late.
        error: share that fail.
        torn: share that fail half way.
        held: share that begin when somebody waits for them, or at some time.
    """

    seed: int
    layout: KVLayout
    caching: bool
    keep_head: bool
    by_group: bool
    keep_copies: bool
    work_ahead: bool
    mode: PreemptionMode
    timing: SwapTiming
    num_host_blocks: int
    num_disk_blocks: int
    stall: float
    error: float
    torn: float
    held: float

    @property
    def is_fair(self) -> bool:
        """Whether transfers do what they are asked to."""
        return not self.error

    def __str__(self) -> str:
        """Name what memory is like, and the sky."""
        return "-".join(
            [
                self.layout,
                "cache" if self.caching else "no_cache",
                "keep_head" if self.keep_head else "drop_head",
                "fair" if self.is_fair else "foul",
            ]
        )


@dataclass
class Tally:
    """What happened.

    Attributes:
        num_switches: requests that were preempted.
        num_requests: turns that were answered, as far as they were not aborted.
        num_aborted: those that were.
        num_steps: steps.
        num_blocks: blocks that were moved, by link.
        num_failures: transfers that failed.
        num_conflicts: transfers that a step waited for because it wrote into their blocks.
        mismatches: turns whose tokens are not those of their lone run.
    """

    num_switches: int = 0
    num_requests: int = 0
    num_aborted: int = 0
    num_steps: int = 0
    num_blocks: Counter[str] = field(default_factory=Counter)
    num_failures: int = 0
    num_conflicts: int = 0
    mismatches: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in what happened elsewhere."""
        self.num_switches += other.num_switches
        self.num_requests += other.num_requests
        self.num_aborted += other.num_aborted
        self.num_steps += other.num_steps
        self.num_blocks += other.num_blocks
        self.num_failures += other.num_failures
        self.num_conflicts += other.num_conflicts
        self.mismatches += other.mismatches


class AtRandom(Priority):
    """Priority with displacement; whatever else there is to decide is decided by lot."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def admit(self, request: RequestView, memory: AdmissionView) -> bool:
        """Admit into the last block, so that memory runs out often."""
        return True

    def victims(self, residents: Sequence[RequestView]) -> Sequence[RequestView]:
        return self._random.sample(residents, len(residents))

    def compose(self, residents: Sequence[RequestView], token_budget: int) -> list[int]:
        counts = []
        for request in residents:
            most = min(request.num_tokens - request.num_computed_tokens, token_budget - sum(counts))
            counts.append(most if self._random.random() < 0.8 else self._random.randint(0, most))
        if counts and not any(counts):
            counts[0] = 1
        return counts


def weathers(seed: int) -> Iterator[Weather]:
    """Yield ever new weather; all kinds of memory within the first eight."""
    random = Random(seed)
    for number in count():
        is_fair = number % 4 == 3
        yield Weather(
            seed=random.randrange(2**32),
            layout="layer_first" if number & 1 else "block_first",
            caching=not number & 2,
            keep_head=not number & 4,
            by_group=random.random() < 0.8,
            keep_copies=random.random() < 0.8,
            work_ahead=random.random() < 0.5,
            mode="swap" if random.random() < 0.8 else "auto",
            timing=random.choice(["beside", "beside", "beside", "auto", "between"]),
            num_host_blocks=random.choice([12, 80, 300]),
            num_disk_blocks=random.choice([0, 20, 200]),
            stall=0.0 if is_fair else 0.01,
            error=0.0 if is_fair else 0.05,
            torn=0.0 if is_fair else 0.05,
            held=0.0 if is_fair else 0.2,
        )


def make_conversations(number: int, seed: int = 7) -> list[Conversation]:
    """Make up conversations of random tokens; a third of them begin alike."""
    random = Random(seed)

    def words(fewest: int, most: int) -> list[int]:
        return [random.randrange(1000, 20000) for _ in range(random.randint(fewest, most))]

    opening = words(18, 18)
    return [
        Conversation(
            [
                (opening if not at % 3 and not turn else []) + words(2, 12)
                for turn in range(NUM_TURNS)
            ],
            [_params(random) for _ in range(NUM_TURNS)],
        )
        for at in range(number)
    ]


def answer_alone(llm: LLM, conversations: Sequence[Conversation]) -> None:
    """Find the answers of each conversation, one by one, with the engine to itself."""
    spec = llm.runtime.spec
    shape = (spec.num_layers, spec.num_kv_heads, spec.head_dim, BLOCK_SIZE)
    store = KVStore(MAX_MODEL_LEN // BLOCK_SIZE, *shape)
    runner = ModelRunner(llm.runtime.executor._model, CpuPagedAttention(store), store)
    kv = KVCacheManager(store.num_blocks, BLOCK_SIZE, enable_prefix_caching=False)
    scheduler = Scheduler(load_policy("fcfs"), kv, max_num_seqs=1, max_num_batched_tokens=512)
    limits = ModelLimits(MAX_MODEL_LEN, spec.vocab_size)
    engine = Engine(scheduler, runner, MonotonicClock(), limits)
    for conversation in conversations:
        for turn, params in enumerate(conversation.params):
            engine.add_request("alone", conversation.prompt(turn), params)
            answer = []
            while engine.has_work:
                answer += [d.token_id for d in engine.step() if d.token_id is not None]
            conversation.answers.append(answer)


class Storm:
    """Conversations, many at a time, in one kind of weather.

    Args:
        llm: has the model.
        conversations: their answers are known.
        weather: what they are exposed to.
        folder: for the disk, if there is one.
    """

    def __init__(
        self, llm: LLM, conversations: Sequence[Conversation], weather: Weather, folder: Path
    ) -> None:
        self.tally = Tally()
        self._conversations = conversations
        self._random = Random(weather.seed)
        spec = llm.runtime.spec
        shape = (spec.num_layers, spec.num_kv_heads, spec.head_dim, BLOCK_SIZE)
        self._device = KVStore(NUM_BLOCKS, *shape, weather.layout)
        self._host = KVStore(weather.num_host_blocks, *shape, weather.layout)
        self._disk = None
        tiers = [LowerTier(Tier.HOST, weather.num_host_blocks, tenant_share=0.5)]
        if weather.num_disk_blocks:
            self._disk = DiskBlocks.open(
                folder,
                num_blocks=weather.num_disk_blocks,
                bytes_per_block=KVStore.bytes_per_block(*shape),
                fingerprint="storm",
            )
            tiers.append(LowerTier(Tier.DISK, self._disk.num_blocks, journal=self._disk))
        self._clock = MonotonicClock()
        self._transfers = FaultyTransfers(
            CpuTransfers(self._device, self._host, self._disk, clock=self._clock),
            seeded_faults(
                weather.seed,
                stall=weather.stall,
                error=weather.error,
                torn=weather.torn,
                held=weather.held,
            ),
        )
        self._residency = Residency(
            self._transfers, *tiers, by_group=weather.by_group, keep_copies=weather.keep_copies
        )
        self._kv = KVCacheManager(
            NUM_BLOCKS,
            BLOCK_SIZE,
            enable_prefix_caching=weather.caching,
            residency=self._residency,
        )
        self._scheduler = Scheduler(
            AtRandom(self._random),
            self._kv,
            max_num_seqs=24,
            max_num_batched_tokens=128,
            switching=SwitchOptions(
                mode=weather.mode,
                timing=weather.timing,
                write_back=weather.work_ahead,
                prefetch=weather.work_ahead,
                keep_head=weather.keep_head,
                max_share=1000.0,
            ),
        )
        runner = ModelRunner(
            llm.runtime.executor._model, CpuPagedAttention(self._device), self._device
        )
        limits = ModelLimits(MAX_MODEL_LEN, spec.vocab_size)
        self._engine = Engine(self._scheduler, runner, self._clock, limits)
        self._received: dict[str, list[int]] = {}
        # Conversation and turn of each request that lives.
        self._turn_of: dict[str, tuple[int, int]] = {}
        self._num_begun = 0
        self._poisoned: dict[Tier, set[int]] = {Tier.DEVICE: set(), Tier.HOST: set()}

    def rage(self, num_switches: int) -> Tally:
        """Go on until so many requests were preempted, and all that has begun has ended."""
        while len(self._turn_of) < NUM_AT_ONCE:
            self._begin()
        while self._engine.has_work:
            self._disturb()
            self._step(self._scheduler.num_preemptions < num_switches)
            self._scheduler.check_integrity()
            self._poison()
        self._transfers.close()
        if self._disk is not None:
            self._disk.close()
        stats = self._residency.stats
        self.tally.num_switches = self._scheduler.num_preemptions
        self.tally.num_conflicts = self._scheduler.switcher.num_conflicts
        self.tally.num_failures = stats.num_failures.total()
        for (source, destination), num_blocks in stats.num_blocks.items():
            self.tally.num_blocks[f"{source.value} to {destination.value}"] += num_blocks
        return self.tally

    def _begin(self) -> None:
        """Begin the next conversation."""
        self._say(self._num_begun % len(self._conversations), 0, f"s{self._num_begun}")
        self._num_begun += 1

    def _say(self, number: int, turn: int, session_id: str) -> None:
        name = f"{session_id}.{turn}"
        tenant_id = TenantId(f"tenant {number % 2}")
        if turn == 0:
            self._engine.sessions.open(tenant_id, 0.2, session_id)
        self._turn_of[name] = number, turn
        self._received[name] = []
        self._engine.add_request(
            name,
            self._conversations[number].prompt(turn),
            self._conversations[number].params[turn],
            priority=self._random.randrange(4),
            tenant_id=tenant_id,
            session_id=session_id,
        )

    def _disturb(self) -> None:
        """Let something happen between two steps."""
        random, scheduler = self._random, self._scheduler
        for request in list(scheduler.running):
            if random.random() < PREEMPT:
                preempt(scheduler, request, self._clock.now_s())
        for request in list(self._engine.live_requests):
            if random.random() < 0.1:
                self._engine.set_priority(request.request_id, random.randrange(4))
        if random.random() < 0.01:
            name = random.choice(list(scheduler.arriving) or list(self._turn_of))
            self._engine.abort(name)
        if random.random() < 0.01:
            self._kv.reset_prefix_cache()
        if random.random() < 0.3:
            self._transfers.release()

    def _step(self, goes_on: bool) -> None:
        self.tally.num_steps += 1
        for delta in self._engine.step():
            name = delta.request_id
            if delta.token_id is not None:
                self._received[name].append(delta.token_id)
            if delta.finish_reason is None:
                continue
            self._check(name, delta.finish_reason)
            number, turn = self._turn_of.pop(name)
            if not goes_on:
                continue
            if turn + 1 < NUM_TURNS and delta.finish_reason == "length":
                self._say(number, turn + 1, name.split(".")[0])
            else:
                self._begin()

    def _check(self, name: str, reason: str) -> None:
        """Compare what a request received with its lone run."""
        number, turn = self._turn_of[name]
        received, alone = self._received.pop(name), self._conversations[number].answers[turn]
        if reason == "abort":
            self.tally.num_aborted += 1
            alone = alone[: len(received)]
        else:
            self.tally.num_requests += 1
        if received != alone or reason not in ("length", "abort"):
            self.tally.mismatches.append(f"{name} of {number}: {reason} {received}, not {alone}")

    def _poison(self) -> None:
        """Fill with NaN what nobody has and nobody reads any more."""
        touched = {
            block_id
            for ticket in self._transfers.in_flight
            for copy in ticket.copies
            for tier, extent in zip((ticket.source, ticket.destination), copy, strict=True)
            if tier is Tier.DEVICE
            for block_id in extent.block_ids
        }
        for tier, pool, store in (
            (Tier.DEVICE, self._kv._pool, self._device),
            (Tier.HOST, self._residency.host._pool, self._host),
        ):
            empty = _empty_blocks(pool) - (touched if tier is Tier.DEVICE else set())
            store.poison(empty - self._poisoned[tier])
            self._poisoned[tier] = empty


def _empty_blocks(pool: BlockPool) -> set[int]:
    free = {id_ for extent in pool._allocator.free_extents() for id_ in extent.block_ids}
    return free - set(pool.cached_ids)


def _params(random: Random) -> SamplingParams:
    """Greedy, or sampled in one of two ways."""
    extra = random.choice(
        [
            {"temperature": 0.0},
            {"temperature": 0.9},
            {"temperature": 1.1, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.3},
        ]
    )
    return SamplingParams(
        max_tokens=random.randint(3, 6), ignore_eos=True, seed=random.randrange(1000), **extra
    )
