"""Workloads in virtual time: who is served, rejected or refused, and when sessions go on."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.execution.costs import StepShape
from evenflow.simulation import prompts
from evenflow.simulation.arrivals import Arrivals
from evenflow.simulation.instance import SimulationSettings
from evenflow.simulation.prompts import Prompts
from evenflow.simulation.result import REJECTED, SimulationResult
from evenflow.simulation.simulator import simulate
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces.recent import Recent
from support.step_costs import OneByOne

NUM_KV_TOKENS = 160
SETTINGS = SimulationSettings(num_blocks=10, block_size=NUM_KV_TOKENS // 10)


class Costs(OneByOne):
    """Every step takes a tenth of a second."""

    description = "a test"

    def step_s(self, shape: StepShape) -> float:
        return 0.1


def turn(number: int, arrival_s: float, think_time_s: float = 0.0) -> WorkloadRequest:
    return WorkloadRequest(
        num_prompt_tokens=10,
        num_output_tokens=5,
        arrival_s=arrival_s,
        session="talk",
        turn=number,
        continues=number > 0,
        think_time_s=think_time_s,
    )


def alone(num_prompt: int, num_output: int, arrival_s: float = 0.0) -> WorkloadRequest:
    return WorkloadRequest(
        num_prompt_tokens=num_prompt, num_output_tokens=num_output, arrival_s=arrival_s
    )


def served(*requests: WorkloadRequest) -> SimulationResult:
    return simulate(requests, SETTINGS, Costs())


def test_simulation_of_nothing_is_over_at_once() -> None:
    result = served()
    assert (result.duration_s, len(result.end_s), result.num_steps) == (0.0, 0, 0)


def test_prompt_is_rejected_when_all_blocks_together_cannot_hold_it() -> None:
    result = served(alone(NUM_KV_TOKENS, 1), alone(NUM_KV_TOKENS - 1, 1))
    assert list(result.finish_reason) == [REJECTED, "length"]
    assert math.isnan(result.first_token_s[0])


def test_answer_ends_when_all_blocks_are_full() -> None:
    result = served(alone(NUM_KV_TOKENS - 3, 100))
    assert result.num_output_tokens.tolist() == [3]
    assert result.peak_kv_blocks <= SETTINGS.num_blocks


@pytest.mark.parametrize("arrivals", [(2.0, 1.0), (0.0, math.nan), (math.nan,), (0.0, math.inf)])
def test_simulation_refuses_arrivals_that_are_not_in_order(arrivals: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="not in order of arrival"):
        served(*(alone(5, 1, arrival_s) for arrival_s in arrivals))


def test_turn_comes_after_its_pause_when_it_is_due_before_the_answer() -> None:
    result = served(turn(0, 0.0), turn(1, 0.2, think_time_s=2.0))
    assert result.arrival_s.tolist() == pytest.approx([0.0, 2.5])


def test_turn_comes_after_its_pause_when_it_is_due_after_the_answer() -> None:
    result = served(turn(0, 0.0), turn(1, 0.7, think_time_s=2.0), turn(2, 9.0, think_time_s=1.0))
    assert result.arrival_s.tolist() == pytest.approx([0.0, 2.5, 9.0])


def test_turns_that_pause_are_handed_out_in_order_of_time() -> None:
    arrivals = Arrivals([turn(0, 0.0), turn(1, 1.0, think_time_s=5.0), alone(5, 1, 3.0)])
    assert [due_s for due_s, _ in arrivals.take(0.5)] == [0.0]
    arrivals.answered("talk", 0.5)
    assert [due_s for due_s, _ in arrivals.take(4.0)] == [3.0]
    assert arrivals.next_s == 5.5
    assert [due_s for due_s, _ in arrivals.take(6.0)] == [5.5]


def test_prompt_holds_the_conversation_that_it_continues() -> None:
    result = served(turn(0, 0.0), turn(1, 0.0), turn(2, 0.0))
    assert result.num_prompt_tokens.tolist() == [10, 10 + 5 + 10, 2 * (10 + 5) + 10]


def test_session_goes_on_after_a_turn_that_was_rejected() -> None:
    too_long = replace(turn(0, 0.0), num_prompt_tokens=NUM_KV_TOKENS)
    short = replace(turn(1, 1.0), continues=False)
    assert list(served(too_long, short).finish_reason) == [REJECTED, "length"]


def test_conversations_are_forgotten_only_while_they_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "Recent", partial(Recent, 2))
    said = Prompts()

    def says(session: str) -> int:
        request = WorkloadRequest(
            num_prompt_tokens=10, num_output_tokens=5, session=session, continues=True
        )
        return len(said.write(request, session))

    says("unanswered")
    for session in "abc":
        says(session)
        said.answer(session, 7, 5)
    said.answer("unanswered", 7, 5)
    lengths = {session: says(session) for session in ("a", "b", "c", "unanswered")}
    assert lengths == {"a": 10, "b": 10, "c": 25, "unanswered": 25}
