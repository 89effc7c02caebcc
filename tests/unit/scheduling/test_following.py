"""Steps that are started before the one before them is over: the same tokens, sooner."""

from __future__ import annotations

from collections import defaultdict
from random import Random
from typing import Any

import pytest

from evenflow.core.clock import VirtualClock
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.residency import Residency
from evenflow.memory.transfers import Tier
from evenflow.scheduling.policy import load_policy
from evenflow.scheduling.scheduler import Scheduler
from support.late_executor import LateExecutor
from support.slot_transfers import SlotTransfers

BLOCK_SIZE = 4
VOCAB_SIZE = 40
EOS = 7
MAX_MODEL_LEN = 64


class OrderedTransfers(SlotTransfers):
    """Transfers that begin after all steps that were started before them, as on a device."""

    def __init__(self, executor: LateExecutor, random: Random) -> None:
        super().__init__(executor.store, BLOCK_SIZE, random)
        self._executor = executor

    def submit(self, *args: Any, **options: Any) -> Any:
        self._executor.drain()
        return super().submit(*args, **options)


def make_engine(
    *,
    ahead: bool,
    policy: str = "fcfs",
    num_blocks: int = 64,
    max_num_seqs: int = 6,
    caching: bool = True,
    num_host_blocks: int = 0,
    seed: int = 0,
) -> tuple[Engine, LateExecutor]:
    executor = LateExecutor(BLOCK_SIZE, VOCAB_SIZE)
    residency = None
    if num_host_blocks:
        transfers = OrderedTransfers(executor, Random(seed))
        residency = Residency(transfers, LowerTier(Tier.HOST, num_host_blocks))
    kv = KVCacheManager(num_blocks, BLOCK_SIZE, enable_prefix_caching=caching, residency=residency)
    scheduler = Scheduler(
        load_policy(policy), kv, max_num_seqs=max_num_seqs, max_num_batched_tokens=24
    )
    limits = ModelLimits(MAX_MODEL_LEN, VOCAB_SIZE, frozenset({EOS}))
    start = executor.start if ahead else None
    return Engine(scheduler, executor, VirtualClock(), limits, start=start), executor


def greedy(max_tokens: int = 20, **params: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **params)


def run(engine: Engine) -> tuple[dict[str, list[int]], dict[str, str | None]]:
    """Step to the end; return tokens and the reason for the end by completion."""
    tokens: dict[str, list[int]] = defaultdict(list)
    ends: dict[str, str | None] = {}
    while engine.has_work:
        collect(engine, tokens, ends)
    return tokens, ends


def collect(engine: Engine, tokens: dict[str, list[int]], ends: dict[str, str | None]) -> None:
    for delta in engine.step():
        name = f"{delta.request_id}#{delta.index}"
        assert name not in ends
        if delta.token_id is not None:
            tokens[name].append(delta.token_id)
        if delta.finish_reason is not None:
            ends[name] = delta.finish_reason
    engine.scheduler.check_integrity()


def test_engine_starts_every_decode_step_ahead_when_nothing_is_to_be_decided() -> None:
    engine, executor = make_engine(ahead=True)
    for name in "abc":
        engine.add_request(name, [1, 2, 3], greedy(10, ignore_eos=True))
    tokens, _ = run(engine)
    assert [len(of) for of in tokens.values()] == [10, 10, 10]
    assert executor.num_followed == 9
    assert engine.times.num_steps == 10


def test_engine_hears_nothing_of_the_token_after_a_stop_token() -> None:
    alone = {}
    for seed in range(40):
        engine, _ = make_engine(ahead=False)
        engine.add_request("a", [seed], greedy(30))
        tokens, ends = run(engine)
        alone[seed] = (tokens["a#0"], ends["a#0"])
    assert {end for _, end in alone.values()} == {"stop", "length"}
    for seed, expected in alone.items():
        engine, _ = make_engine(ahead=True)
        engine.add_request("a", [seed], greedy(30))
        tokens, ends = run(engine)
        assert (tokens["a#0"], ends["a#0"]) == expected


def test_engine_takes_the_order_of_a_request_that_waits_before_it_follows() -> None:
    engine, executor = make_engine(ahead=True)
    engine.add_request("a", [1, 2], greedy(30, ignore_eos=True))
    for _ in range(3):
        engine.step()
    followed = executor.num_followed
    engine.add_request("b", [3, 4], greedy(2, ignore_eos=True))
    engine.step()  # takes in the step that was started ahead
    assert executor.num_followed == followed
    engine.step()  # a's next token, and b's prompt
    assert engine.started == ["b"]


def test_engine_follows_while_those_who_wait_lack_a_seat_and_lets_them_in_when_one_is_sure() -> (
    None
):
    engine, executor = make_engine(ahead=True, max_num_seqs=2)
    for name, count in (("a", 6), ("b", 9), ("c", 4)):
        engine.add_request(name, [1, 2, ord(name) % VOCAB_SIZE], greedy(count, ignore_eos=True))
    starts = []
    for step in range(7):
        engine.step()
        starts += [(name, step) for name in engine.started]
    assert starts == [("a", 0), ("b", 0), ("c", 6)]
    assert executor.num_followed >= 4


def test_engine_decides_every_second_step_when_ranks_move_and_somebody_waits() -> None:
    engine, executor = make_engine(ahead=True, max_num_seqs=2, policy="vtc")
    for name in "abc":
        engine.add_request(name, [1, ord(name) % VOCAB_SIZE], greedy(20, ignore_eos=True))
    followed = []
    for _ in range(6):
        engine.step()
        followed.append(executor.num_followed)
    assert followed == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "params",
    [{"frequency_penalty": 0.5}, {"presence_penalty": 0.5}, {"repetition_penalty": 1.1}],
    ids=lambda params: next(iter(params)),
)
def test_engine_does_not_follow_requests_whose_sampling_needs_the_token(
    params: dict[str, float],
) -> None:
    engine, executor = make_engine(ahead=True)
    engine.add_request("a", [1, 2], greedy(8, ignore_eos=True, **params))
    run(engine)
    assert executor.num_followed == 0


def test_pause_takes_in_the_step_under_way_and_starts_none() -> None:
    engine, executor = make_engine(ahead=True)
    engine.add_request("a", [1, 2], greedy(8, ignore_eos=True))
    engine.step()
    engine.pause()
    assert not engine.is_paused
    assert len(engine.step()) == 1
    assert engine.is_paused
    followed = executor.num_followed
    assert engine.step() == []
    assert executor.num_followed == followed
    engine.resume()
    tokens, _ = run(engine)
    assert len(tokens["a#0"]) == 6


def test_abort_of_the_last_request_leaves_a_step_to_be_taken_in() -> None:
    engine, _ = make_engine(ahead=True)
    engine.add_request("a", [1, 2], greedy(8, ignore_eos=True))
    engine.step()
    engine.abort("a")
    tokens, ends = run(engine)
    assert (tokens, ends) == ({}, {"a#0": "abort"})
    assert engine.scheduler.kv.num_available_blocks == engine.scheduler.kv.num_blocks


def test_failure_ends_one_request_and_drops_its_part_of_the_next_step() -> None:
    engine, executor = make_engine(ahead=True)
    for name in ("a", "b"):
        engine.add_request(name, [1, 2], greedy(10, ignore_eos=True))
    executor.fails_at["a"] = 5
    tokens, ends = run(engine)
    assert ends == {"a#0": "error", "b#0": "length"}
    assert (len(tokens["a#0"]), len(tokens["b#0"])) == (3, 10)


def play(seed: int, *, ahead: bool, **settings: Any) -> tuple[dict[str, list[int]], dict, int, int]:
    """Let requests come and go by lot; return tokens, ends and how many were switched, ahead."""
    random = Random(seed)
    engine, executor = make_engine(ahead=ahead, seed=seed, **settings)
    tokens: dict[str, list[int]] = defaultdict(list)
    ends: dict[str, str | None] = {}
    opening = [random.randrange(VOCAB_SIZE) for _ in range(12)]
    for number in range(40):
        prompt = opening[: random.randrange(13)]
        prompt += [random.randrange(VOCAB_SIZE) for _ in range(random.randrange(1, 12))]
        params = greedy(
            random.randrange(1, 30), n=random.choice([1, 1, 1, 3]), ignore_eos=random.random() < 0.3
        )
        engine.add_request(f"r{number}", prompt, params, priority=random.randrange(3))
        victim = f"r{random.randrange(40)}"
        if random.random() < 0.1:
            engine.abort(victim)
        for _ in range(random.randrange(5)):
            collect(engine, tokens, ends)
    while engine.has_work:
        collect(engine, tokens, ends)
    kv = engine.scheduler.kv
    assert kv.num_available_blocks == kv.num_blocks
    return tokens, ends, engine.scheduler.num_preemptions, executor.num_followed


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_blocks": 24},
        {"num_blocks": 24, "caching": False},
        {"num_blocks": 24, "policy": "priority"},
        {"num_blocks": 24, "policy": "vtc", "num_host_blocks": 40},
        {"num_blocks": 20, "policy": "priority", "num_host_blocks": 40},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()) or "roomy",
)
@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_the_same_with_and_without_steps_started_ahead(
    seed: int, settings: dict[str, Any]
) -> None:
    expected, expected_ends, _, none_followed = play(seed, ahead=False, **settings)
    tokens, ends, num_preemptions, num_followed = play(seed, ahead=True, **settings)
    assert none_followed == 0
    assert num_followed > 10
    assert ends.keys() == expected_ends.keys()
    aborted = {name for name, end in (*ends.items(), *expected_ends.items()) if end == "abort"}
    for name in ends.keys() - aborted:
        assert (tokens[name], ends[name]) == (expected[name], expected_ends[name]), name
    for name in aborted:  # when exactly they were is another matter
        common = min(len(tokens[name]), len(expected[name]))
        assert tokens[name][:common] == expected[name][:common], name
    if settings.get("num_blocks"):
        assert num_preemptions > 0
