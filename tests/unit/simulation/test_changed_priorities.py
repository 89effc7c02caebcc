"""Priorities that change in the course of a simulation."""

from __future__ import annotations

import numpy as np
import pytest

from evenflow.simulation.instance import Instance, SimulationSettings
from evenflow.simulation.result import SimulationResult
from evenflow.simulation.simulator import simulate
from evenflow.workloads.priorities import PriorityFeed, PriorityUpdate, RecordedPriorities
from evenflow.workloads.priorities import open_priorities as opened
from evenflow.workloads.request import WorkloadRequest
from support.simulated_runs import SteadyCosts

STEP_S = 0.1
ONE_BY_ONE = SimulationSettings(num_blocks=64, policy="priority", max_num_seqs=1)


def alone(num_output: int, arrival_s: float = 0.0, **fields: object) -> WorkloadRequest:
    return WorkloadRequest(
        num_prompt_tokens=10, num_output_tokens=num_output, arrival_s=arrival_s, **fields
    )


def served(
    *requests: WorkloadRequest,
    settings: SimulationSettings = ONE_BY_ONE,
    priorities: PriorityFeed | None = None,
) -> SimulationResult:
    return simulate(requests, settings, SteadyCosts(STEP_S), priorities=priorities)


def order(result: SimulationResult) -> list[int]:
    return np.argsort(result.first_token_s).tolist()


@pytest.mark.parametrize("when", [{"step": 4}, {"at_s": 4 * STEP_S}])
def test_request_that_becomes_urgent_overtakes_those_that_wait(when: dict[str, float]) -> None:
    requests = [alone(5) for _ in range(4)]
    update = PriorityUpdate({"2": -1}, **when)
    assert order(served(*requests)) == [0, 1, 2, 3]
    assert order(served(*requests, priorities=RecordedPriorities([update]))) == [0, 2, 1, 3]


def test_update_holds_from_the_first_step_after_it() -> None:
    """The first request ends with the fifth step: an update after that comes too late."""
    requests = [alone(5) for _ in range(3)]
    late, in_time = (RecordedPriorities([PriorityUpdate({"2": -1}, step)]) for step in (6, 5))
    assert order(served(*requests, priorities=late)) == [0, 1, 2]
    assert order(served(*requests, priorities=in_time)) == [0, 2, 1]


def test_request_that_comes_later_has_the_priority_that_was_announced() -> None:
    feed = RecordedPriorities([PriorityUpdate({"urgent": -1}, 1)])
    requests = [alone(9), alone(5, 0.2), alone(5, 0.3, session="urgent"), alone(5, 0.3, priority=1)]
    assert order(served(*requests, priorities=feed)) == [0, 2, 1, 3]


def test_all_turns_of_a_session_have_its_priority() -> None:
    turns = [alone(5, session="chat", turn=0), alone(5, session="chat", turn=1, continues=True)]
    others = [alone(12, 0.05), alone(5, 0.05)]
    feed = RecordedPriorities([PriorityUpdate({"chat": -1}, 1)])
    # In order of arrival the second turn is the last: it waits for the first one's answer.
    assert order(served(*turns, *others)) == [0, 1, 2, 3]
    assert order(served(*turns, *others, priorities=feed)) == [0, 3, 1, 2]


@pytest.mark.parametrize("kind", ["random:0.2", "markov:0.5"])
def test_steps_taken_together_see_every_update(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [alone(20 + 7 * number, 0.4 * number) for number in range(12)]
    settings = SimulationSettings(
        num_blocks=12, policy="priority", block_size=16, enable_prefix_caching=False
    )
    together = served(*requests, settings=settings, priorities=opened(kind)())
    monkeypatch.setattr(Instance, "_take_equal_steps", lambda *_: None)
    single = served(*requests, settings=settings, priorities=opened(kind)())
    assert together.num_preemptions.sum() > 0
    for name in ("first_token_s", "end_s", "num_preemptions", "itl_counts"):
        assert np.allclose(getattr(together, name), getattr(single, name)), name
    unchanged = served(*requests, settings=settings)
    assert not np.allclose(unchanged.end_s, single.end_s)
