"""Priorities that change while requests wait or run, from the scheduler out to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from evenflow.core.sampling import SamplingParams
from evenflow.core.structured import StructuredOutput
from evenflow.engine.process.messages import AddRequest, AdminCall, Command, SetPriority
from evenflow.scheduling.coasting import Coast
from support.engine_host import Desk, FreeGrammar
from support.scripted_engine import make_engine

TOKENS = SamplingParams(max_tokens=20, ignore_eos=True)


def prompt(length: int, start: int) -> list[int]:
    return [start + index for index in range(length)]


def running(engine: Any) -> list[str]:
    return [request.request_id for request in engine.scheduler.running]


def test_waiting_request_starts_before_others_when_it_becomes_more_urgent() -> None:
    engine, _ = make_engine(policy="priority", max_num_seqs=1)
    for priority, name in ((0, "a"), (2, "b"), (3, "c")):
        tokens = prompt(4, 100 * priority)
        engine.add_request(name, tokens, SamplingParams(max_tokens=3), priority=priority)
    engine.step()
    assert engine.set_priority("c", 1)
    order: list[str] = []
    while engine.has_work:
        order += [delta.request_id for delta in engine.step() if delta.finish_reason]
        engine.scheduler.check_integrity()
    assert order == ["a", "c", "b"]


def test_running_request_is_the_victim_when_it_becomes_less_urgent() -> None:
    engine, _ = make_engine(
        policy="priority", num_blocks=12, max_model_len=48, enable_prefix_caching=False
    )
    for start, name in enumerate("ab"):
        engine.add_request(name, prompt(15, 100 * start), TOKENS)
    engine.step()
    engine.step()
    assert running(engine) == ["a", "b"]
    engine.set_priority("a", 5)
    while not engine.scheduler.num_preemptions:
        engine.step()
    assert running(engine) == ["b"]
    engine.scheduler.check_integrity()


def test_priority_is_changed_of_all_completions_of_a_request_and_of_no_other() -> None:
    engine, _ = make_engine(policy="priority")
    engine.add_request("a", prompt(4, 0), SamplingParams(n=3, max_tokens=4))
    engine.add_request("b", prompt(4, 100), TOKENS)
    assert engine.set_priority("a", 7)
    assert [request.priority for request in engine.live_requests] == [7, 7, 7, 0]


def test_nothing_changes_when_the_request_is_unknown() -> None:
    engine, _ = make_engine()
    assert not engine.set_priority("nobody", 1)


@pytest.mark.parametrize(("max_num_seqs", "name"), [(1, "c"), (3, "a")])
def test_steps_are_not_taken_together_until_a_changed_priority_was_looked_at(
    max_num_seqs: int, name: str
) -> None:
    """Whoever waits may now be the one that could start, and the running may change places."""
    engine, _ = make_engine(
        policy="priority", max_num_seqs=max_num_seqs, enable_prefix_caching=False
    )
    for start, request_id in enumerate("abc"):
        engine.add_request(request_id, prompt(4, 100 * start), TOKENS)
    engine.step()

    def coast() -> Coast:
        return Coast(engine.scheduler)

    before = coast()
    assert before.max_steps() > 0
    engine.set_priority(name, 1)
    assert before.max_steps() == 0
    engine.step()
    assert coast().max_steps() > 0


def test_host_changes_the_priority_of_a_request_that_waits() -> None:
    desk = Desk()
    seen: list[int] = []

    def look() -> Sequence[Command]:
        seen.extend(request.priority for request in desk.engine.live_requests)
        return [AdminCall(2, "resume")]

    request = AddRequest(request_id="a", prompt_token_ids=[1], params=TOKENS)
    desk.run([AdminCall(1, "pause"), request, SetPriority("a", 7), SetPriority("b", 1)], look)
    assert seen == [7]


def test_host_changes_the_priority_of_a_request_whose_grammar_is_being_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: dict[str, Any] = {}
    desk = Desk(compile_grammar=lambda _: FreeGrammar())
    monkeypatch.setattr(desk.engine, "add_request", lambda *_, **fields: said.update(fields))
    letters = SamplingParams(max_tokens=3, structured=StructuredOutput("regex", "[a-z]+"))
    request = AddRequest(request_id="a", prompt_token_ids=[1], params=letters, priority=3)
    desk.run([request, SetPriority("a", -2)], desk.wait_for_grammars)
    assert said["priority"] == -2
