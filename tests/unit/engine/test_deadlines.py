from __future__ import annotations

import math

import pytest

from evenflow.core.clock import VirtualClock
from evenflow.core.errors import InvalidRequestError
from evenflow.core.sampling import SamplingParams
from evenflow.core.slo import Slo
from support.scripted_engine import make_engine

PARAMS = SamplingParams(max_tokens=50)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(100.0)


def test_step_ends_a_running_request_at_its_deadline(clock: VirtualClock) -> None:
    engine, executor = make_engine(clock=clock, enable_prefix_caching=False)
    engine.add_request("a", [1, 2, 3], PARAMS, deadline_s=102.0)
    for _ in range(2):
        assert [delta.finish_reason for delta in engine.step()] == [None]
        clock.advance(1.0)
    (last,) = engine.step()
    assert (last.finish_reason, last.token_id) == ("timeout", None)
    assert last.error == "its 2.000 s were over after 2 output tokens"
    assert last.metrics is not None
    assert (last.metrics.num_output_tokens, last.metrics.finished_s) == (2, 102.0)
    assert len(executor.steps) == 2
    assert engine.scheduler.kv.stats().num_free == 64
    assert not engine.has_work


def test_step_ends_requests_that_wait_or_share_a_prompt(clock: VirtualClock) -> None:
    engine, _ = make_engine(clock=clock, max_num_seqs=1, max_num_batched_tokens=8)
    engine.add_request("runs", list(range(40)), SamplingParams(max_tokens=9, n=2), deadline_s=101.0)
    engine.add_request("waits", [1], PARAMS, deadline_s=101.0)
    engine.step()
    clock.advance(1.0)
    deltas = engine.step()
    ends = sorted((delta.request_id, delta.index, delta.finish_reason) for delta in deltas)
    assert ends == [("runs", 0, "timeout"), ("runs", 1, "timeout"), ("waits", 0, "timeout")]
    engine.scheduler.check_integrity()
    assert not engine.has_work


def test_step_leaves_requests_alone_that_have_time(clock: VirtualClock) -> None:
    engine, _ = make_engine(clock=clock)
    for name, deadline_s in (("never", None), ("soon", 101.0), ("later", 103.0)):
        engine.add_request(name, [1, 2], PARAMS, deadline_s=deadline_s)
    alive = []
    for _ in range(5):
        engine.step()
        alive.append(sorted(engine.scheduler.requests))
        clock.advance(1.0)
    both = ["later", "never"]
    assert alive == [[*both, "soon"], both, both, ["never"], ["never"]]


def test_step_honours_a_deadline_after_earlier_requests_ended_by_themselves(
    clock: VirtualClock,
) -> None:
    engine, _ = make_engine(clock=clock)
    engine.add_request("short", [1], SamplingParams(max_tokens=1), deadline_s=101.0)
    engine.add_request("long", [1], PARAMS, deadline_s=105.0)
    for _ in range(5):
        engine.step()
        clock.advance(1.0)
    assert [delta.finish_reason for delta in engine.step()] == ["timeout"]


def test_step_ends_late_requests_while_the_engine_is_paused(clock: VirtualClock) -> None:
    engine, _ = make_engine(clock=clock)
    engine.add_request("a", [1], PARAMS, deadline_s=101.0)
    engine.pause()
    assert engine.step() == []
    clock.advance(1.0)
    assert [delta.finish_reason for delta in engine.step()] == ["timeout"]


def test_expire_ends_late_requests_without_a_step(clock: VirtualClock) -> None:
    engine, executor = make_engine(clock=clock)
    engine.add_request("a", [1], PARAMS, deadline_s=101.0)
    engine.expire(100.9)
    assert engine.scheduler.requests
    engine.expire(101.0)
    assert not engine.scheduler.requests
    assert engine.has_work, "the end is still to be reported"
    assert [delta.finish_reason for delta in engine.step()] == ["timeout"]
    assert executor.steps == []


def test_add_request_takes_a_deadline_that_has_passed(clock: VirtualClock) -> None:
    engine, executor = make_engine(clock=clock)
    engine.add_request("a", [1], PARAMS, deadline_s=99.0)
    assert [delta.finish_reason for delta in engine.step()] == ["timeout"]
    assert executor.steps == []


@pytest.mark.parametrize("deadline_s", [math.nan, math.inf, -math.inf])
def test_add_request_refuses_a_deadline_that_is_no_time(deadline_s: float) -> None:
    engine, _ = make_engine()
    with pytest.raises(InvalidRequestError) as caught:
        engine.add_request("a", [1], PARAMS, deadline_s=deadline_s)
    assert caught.value.param == "deadline_s"
    assert not engine.has_work


def test_add_request_hands_objectives_and_deadline_to_the_policy() -> None:
    engine, _ = make_engine()
    slo = Slo(ttft_s=1.0)
    engine.add_request("a", [1], SamplingParams(n=2), slo=slo, deadline_s=9.0)
    for request in engine.scheduler.requests.values():
        assert (request.slo, request.deadline_s) == (slo, 9.0)
