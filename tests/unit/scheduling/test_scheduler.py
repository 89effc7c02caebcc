from __future__ import annotations

import pytest

from evenflow.core.errors import IntegrityError
from evenflow.core.events import EventKind
from evenflow.core.sampling import SamplingParams
from evenflow.core.status import RequestStatus
from support.scripted_engine import make_engine, scripted_token


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start + i) % 1000 for i in range(length)]


def run(engine) -> list:
    deltas = []
    for _ in range(1000):
        if not engine.has_work:
            return deltas
        deltas += engine.step()
        engine.scheduler.check_integrity()
    raise AssertionError("the engine does not come to an end")


def test_schedule_gives_decodes_their_token_before_prompt_chunks() -> None:
    engine, executor = make_engine(max_num_batched_tokens=16)
    engine.add_request("short", prompt(4), SamplingParams(max_tokens=20))
    engine.step()
    engine.add_request("long", prompt(60, 500), SamplingParams(max_tokens=1))
    for _ in range(4):
        engine.step()
    assert executor.steps[1:] == [{"short": 1, "long": 15}] * 4


def test_schedule_fills_the_budget_with_several_prompts_and_cuts_the_last() -> None:
    engine, executor = make_engine(max_num_batched_tokens=16)
    for name, start in (("a", 0), ("b", 100), ("c", 200)):
        engine.add_request(name, prompt(7, start), SamplingParams(max_tokens=1))
    engine.step()
    assert executor.steps == [{"a": 7, "b": 7, "c": 2}]


def test_schedule_runs_no_more_than_max_num_seqs() -> None:
    engine, executor = make_engine(max_num_seqs=2)
    for name in "abc":
        engine.add_request(name, prompt(3), SamplingParams(max_tokens=2))
    run(engine)
    assert max(len(step) for step in executor.steps) == 2


def test_admit_waits_until_the_whole_prompt_fits() -> None:
    engine, executor = make_engine(num_blocks=32, enable_prefix_caching=False)
    engine.add_request("first", prompt(80), SamplingParams(max_tokens=8))
    engine.step()
    engine.add_request("second", prompt(60), SamplingParams(max_tokens=1))
    for _ in range(3):
        engine.step()
    second = engine.scheduler.requests["second"]
    assert second.status is RequestStatus.WAITING
    assert second.events[-1].kind is EventKind.HELD
    assert "needs 15 blocks" in second.events[-1].cause
    run(engine)
    assert "second" in executor.steps[-1]


def test_admit_does_not_let_a_later_request_pass_the_one_at_the_door() -> None:
    engine, executor = make_engine(num_blocks=32, enable_prefix_caching=False)
    engine.add_request("first", prompt(80), SamplingParams(max_tokens=8))
    engine.step()
    engine.add_request("big", prompt(60), SamplingParams(max_tokens=1))
    engine.add_request("small", prompt(4), SamplingParams(max_tokens=1))
    run(engine)
    order = [name for step in executor.steps for name in step]
    assert order.index("big") < order.index("small")


def test_schedule_preempts_the_last_in_rank_when_memory_runs_out() -> None:
    engine, _ = make_engine(num_blocks=16, max_model_len=64, enable_prefix_caching=False)
    for name, start in (("a", 0), ("b", 100), ("c", 200)):
        engine.add_request(name, prompt(12, start), SamplingParams(max_tokens=30))
    requests = dict(engine.scheduler.requests)
    deltas = run(engine)
    assert requests["a"].num_preemptions == 0
    assert requests["c"].num_preemptions > 0
    preempted = [e for e in requests["c"].events if e.kind is EventKind.PREEMPTED]
    assert "needed a block" in preempted[0].cause
    for name in "abc":
        tokens = [d.token_id for d in deltas if d.request_id == name]
        assert tokens == [scripted_token(name, length) for length in range(12, 42)]


def test_schedule_keeps_the_place_of_a_preempted_request() -> None:
    engine, executor = make_engine(num_blocks=16, max_model_len=64, enable_prefix_caching=False)
    for name, start in (("a", 0), ("b", 100), ("c", 200)):
        engine.add_request(name, prompt(12, start), SamplingParams(max_tokens=30))
    for _ in range(12):
        engine.step()
    assert engine.scheduler.num_preemptions > 0
    engine.add_request("d", prompt(4), SamplingParams(max_tokens=1))
    run(engine)
    last_of_c = max(i for i, step in enumerate(executor.steps) if "c" in step)
    first_of_d = min(i for i, step in enumerate(executor.steps) if "d" in step)
    resumed_c = [i for i, step in enumerate(executor.steps) if step.get("c", 0) > 1]
    assert resumed_c[1] <= first_of_d <= last_of_c


@pytest.mark.parametrize(("policy", "first"), [("fcfs", "casual"), ("priority", "urgent")])
def test_policy_decides_who_is_admitted_first(policy: str, first: str) -> None:
    engine, executor = make_engine(policy=policy, max_num_seqs=1)
    engine.add_request("casual", prompt(4), SamplingParams(max_tokens=1), priority=5)
    engine.add_request("urgent", prompt(4), SamplingParams(max_tokens=1), priority=-1)
    run(engine)
    assert next(iter(executor.steps[0])) == first


def test_priority_takes_memory_from_the_least_urgent() -> None:
    engine, _ = make_engine(
        policy="priority", num_blocks=16, max_model_len=64, enable_prefix_caching=False
    )
    for name, priority in (("low", 9), ("high", 0), ("middle", 5)):
        engine.add_request(name, prompt(12), SamplingParams(max_tokens=30), priority=priority)
    requests = dict(engine.scheduler.requests)
    run(engine)
    assert requests["high"].num_preemptions == 0
    assert requests["low"].num_preemptions > 0


def test_finish_frees_everything_at_once_when_a_running_request_is_aborted() -> None:
    engine, _ = make_engine(enable_prefix_caching=False)
    engine.add_request("a", prompt(40), SamplingParams(max_tokens=50))
    engine.step()
    assert engine.scheduler.kv.stats().num_free < 64
    assert engine.abort("a")
    assert engine.scheduler.kv.stats().num_free == 64
    assert [d.finish_reason for d in engine.step()] == ["abort"]
    assert not engine.has_work


def test_siblings_compute_a_shared_prompt_once() -> None:
    engine, executor = make_engine(enable_prefix_caching=False, max_num_batched_tokens=32)
    engine.add_request("a", prompt(30), SamplingParams(n=4, max_tokens=6))
    deltas = run(engine)
    computed = sum(sum(step.values()) for step in executor.steps)
    # 30 prompt tokens once, one prompt token again for each sibling, 5 decodes for each of the 4.
    assert computed == 30 + 3 + 4 * 5
    assert sorted(d.index for d in deltas if d.finish_reason) == [0, 1, 2, 3]


def test_siblings_stand_on_their_own_when_the_parent_is_gone() -> None:
    engine, _ = make_engine(max_num_batched_tokens=9)
    engine.add_request("a", prompt(30), SamplingParams(n=3, max_tokens=4))
    engine.step()
    scheduler = engine.scheduler
    scheduler.finish(scheduler.requests["a"], RequestStatus.FINISHED_ABORTED, 0.0, "test")
    engine._completions.forget(engine._completions.live["a"])
    deltas = run(engine)
    assert sorted(d.index for d in deltas if d.finish_reason == "length") == [1, 2]


def test_siblings_end_with_little_memory() -> None:
    engine, _ = make_engine(num_blocks=17, max_model_len=64)
    engine.add_request("a", prompt(30), SamplingParams(n=6, max_tokens=30))
    deltas = run(engine)
    for index in range(6):
        tokens = [d.token_id for d in deltas if d.index == index]
        assert len(tokens) == 30


def test_schedule_takes_back_shared_prompts_when_nothing_runs_and_the_first_does_not_fit() -> None:
    engine, _ = make_engine(policy="priority", num_blocks=12, max_model_len=48)
    engine.add_request("p", prompt(12), SamplingParams(n=2, max_tokens=1), priority=1)
    engine.step()
    assert not engine.scheduler.running
    assert engine.scheduler.kv.holds("p#1")
    engine.add_request("x", prompt(45, 100), SamplingParams(max_tokens=1), priority=0)
    ended = [(d.request_id, d.index) for d in run(engine) if d.finish_reason == "length"]
    assert ended == [("x", 0), ("p", 1)]


def test_prefix_cache_spares_the_second_request_its_prompt() -> None:
    engine, executor = make_engine()
    engine.add_request("a", prompt(30), SamplingParams(max_tokens=1))
    run(engine)
    engine.add_request("b", prompt(30), SamplingParams(max_tokens=1))
    deltas = run(engine)
    assert executor.steps[-1] == {"b": 2}
    assert deltas[-1].metrics.num_cached_tokens == 28


def test_prefix_cache_is_passed_over_when_prompt_logprobs_are_wanted() -> None:
    engine, executor = make_engine()
    engine.add_request("a", prompt(30), SamplingParams(max_tokens=1))
    run(engine)
    engine.add_request("b", prompt(30), SamplingParams(max_tokens=1, prompt_logprobs=0))
    run(engine)
    assert executor.steps[-1] == {"b": 30}


def test_update_stops_at_an_end_token_only_after_min_tokens() -> None:
    ends = {scripted_token("a", length) for length in (5, 8)}
    engine, _ = make_engine(eos_token_ids=frozenset(ends))
    engine.add_request("a", prompt(4), SamplingParams(max_tokens=20, min_tokens=3))
    deltas = run(engine)
    assert len(deltas) == 5
    assert (deltas[-1].finish_reason, deltas[-1].token_id) == ("stop", scripted_token("a", 8))
    assert deltas[-1].stop_reason is None


def test_update_goes_on_past_end_tokens_when_told_to_ignore_them() -> None:
    engine, _ = make_engine(eos_token_ids=frozenset(range(1000)))
    engine.add_request("a", prompt(4), SamplingParams(max_tokens=7, ignore_eos=True))
    assert [d.finish_reason for d in run(engine)] == [None] * 6 + ["length"]


@pytest.mark.parametrize("counts", [[0], [-1], [31], [1, 1], []])
def test_schedule_refuses_a_composition_that_cannot_be(counts: list[int]) -> None:
    engine, _ = make_engine()
    engine.add_request("a", prompt(30), SamplingParams(max_tokens=4))
    engine.scheduler.policy.compose = lambda *_: counts
    with pytest.raises(IntegrityError, match="cannot be"):
        engine.step()


def test_schedule_serves_the_urgent_prompt_first_when_both_are_half_done() -> None:
    engine, executor = make_engine(policy="priority", max_num_batched_tokens=16)
    engine.add_request("later", prompt(60), SamplingParams(max_tokens=1), priority=5)
    engine.add_request("now", prompt(20, 500), SamplingParams(max_tokens=1), priority=1)
    run(engine)
    assert executor.steps[:2] == [{"now": 16}, {"now": 4, "later": 12}]


def test_finish_lets_nobody_find_the_kv_of_a_failed_request() -> None:
    engine, executor = make_engine()
    engine.add_request("a", prompt(30), SamplingParams(max_tokens=9))
    engine.step()
    scheduler = engine.scheduler
    scheduler.finish(scheduler.requests["a"], RequestStatus.FINISHED_ERROR, 0.0, "test")
    scheduler.check_integrity()
    engine.add_request("b", prompt(30), SamplingParams(max_tokens=1))
    engine.step()
    assert executor.steps[-1] == {"b": 30}
