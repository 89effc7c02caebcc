import pytest

from evenflow.core.clock import VirtualClock
from evenflow.engine.limits import ModelLimits
from evenflow.execution.executor import ScriptedExecutor
from evenflow.scheduling.plan import StepPlan, StepResult
from fairness_arms import TurnClock, World, fairness_arms


class TiringMachine:
    """Computes nothing, and takes twice as long for a step after a minute."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._scripted = ScriptedExecutor(lambda request_id, length: 0)

    def execute(self, plan: StepPlan) -> StepResult:
        self._clock.advance(0.02 * (1 + self._clock.now_s() / 60.0))
        return self._scripted.execute(plan)


def test_fairness_arms_finds_no_cost_of_policies_when_the_machine_gets_slower() -> None:
    clock = VirtualClock()
    machine = TiringMachine(clock)
    world = World(
        executor=lambda: (machine, TurnClock(clock)),
        limits=ModelLimits(512, 1000),
        num_blocks=512,
        max_num_seqs=8,
        max_num_batched_tokens=128,
        prompt_tokens=(16, 64),
        output_tokens=(8, 40),
    )

    result = fairness_arms(world, duration_s=15.0)

    assert result["throughput_ratio"] == pytest.approx({"fcfs": 1, "vtc": 1, "fair": 1}, abs=5e-3)
    assert result["jain"]["vtc"] > 0.95


def test_turn_clock_stands_still_when_others_have_their_turn() -> None:
    source = VirtualClock(100.0)
    clock = TurnClock(source)
    source.advance(1.0)
    with clock.turn():
        source.advance(2.0)
        clock.advance(4.0)
        assert clock.now_s() == 6.0
    source.advance(8.0)
    assert clock.now_s() == 6.0
