from __future__ import annotations

import pytest

from evenflow.memory.extents import Extent
from evenflow.memory.transfers import Outcome, Ticket, Tier
from evenflow.scheduling.switch_costs import Choice, RunningMean, SwitchBudget, SwitchCosts


def moved(num_blocks: int, seconds: float, failure: str | None = None) -> Outcome:
    extent = Extent(0, num_blocks)
    return Outcome(Ticket(Tier.DEVICE, Tier.HOST, ((extent, extent),)), seconds, failure)


# ---- Means -------------------------------------------------------------------------------------


def test_running_mean_is_the_mean_of_the_first_observations() -> None:
    mean = RunningMean()
    assert mean.value is None
    for value in (1.0, 2.0, 6.0):
        mean.add(value)
    assert mean.value == 3.0


def test_running_mean_forgets_what_it_was_assumed_to_be() -> None:
    mean = RunningMean(100.0)
    mean.add(2.0)
    assert mean.value == 2.0


def test_running_mean_follows_a_change_however_long_it_was_steady() -> None:
    mean = RunningMean()
    for _ in range(10_000):
        mean.add(1.0)
    for _ in range(100):
        mean.add(2.0)
    assert mean.value is not None
    assert mean.value > 1.9


# ---- Times -------------------------------------------------------------------------------------


def test_moving_costs_nothing_until_it_was_tried() -> None:
    costs = SwitchCosts()
    assert costs.move_s(Tier.DEVICE, Tier.HOST, 100) == 0
    costs.note_transfer(moved(4, 0.008))
    assert costs.move_s(Tier.DEVICE, Tier.HOST, 100) == pytest.approx(0.2)
    assert costs.move_s(Tier.HOST, Tier.DEVICE, 100) == 0


def test_failed_transfer_says_nothing_about_times() -> None:
    costs = SwitchCosts()
    costs.note_transfer(moved(4, 9.0, failure="the link broke"))
    assert costs.move_s(Tier.DEVICE, Tier.HOST, 1) == 0


def test_recomputing_costs_what_prompt_tokens_add_to_a_step() -> None:
    costs = SwitchCosts()
    assert costs.recompute_s(10) is None
    costs.note_step(4, 4, 0.020, 0.0)
    costs.note_step(4, 104, 0.070, 0.0)
    assert costs.step_s == 0.020
    assert costs.recompute_s(10) == pytest.approx(0.005)


def test_slowdown_is_by_how_much_copying_makes_a_step_longer() -> None:
    costs = SwitchCosts()
    costs.note_step(4, 4, 0.020, 0.0)
    costs.note_step(4, 104, 0.070, 0.0)
    costs.note_step(4, 54, 0.060, 0.010)  # 0.045 s are expected
    assert costs.slowdown.value == pytest.approx(1.5)
    assert costs.step_s == 0.020


def test_slowdown_stays_unknown_until_a_step_without_copies_was_seen() -> None:
    costs = SwitchCosts()
    costs.note_step(4, 4, 0.060, 0.010)
    assert costs.slowdown.value is None


# ---- Choices -----------------------------------------------------------------------------------


def choices(choice: Choice, beside_cost: float, between_cost: float, number: int) -> list[bool]:
    return [choice.beside(beside_cost, between_cost) for _ in range(number)]


def test_choice_begins_beside_and_takes_what_is_cheaper() -> None:
    choice = Choice()
    assert choices(choice, 1.0, 1.0, 2) == [True, True]
    assert choices(choice, 2.0, 1.0, 2) == [False, False]
    assert choices(choice, 1.0, 2.0, 2) == [True, True]


def test_choice_stays_while_the_other_way_is_little_better() -> None:
    choice = Choice()
    assert choices(choice, 1.2, 1.0, 3) == [True] * 3
    choice.beside(2.0, 1.0)
    assert choices(choice, 1.0, 1.2, 3) == [False] * 3


def test_choice_tries_the_other_way_once_in_a_while() -> None:
    assert choices(Choice(), 9.0, 1.0, 64) == ([False] * 31 + [True]) * 2


# ---- Budget ------------------------------------------------------------------------------------


def test_budget_allows_a_first_switch_whatever_it_costs_and_then_waits_for_it() -> None:
    budget = SwitchBudget(0.1)
    assert budget.allows(100.0)
    budget.spend(0.5)
    assert not budget.allows(104.9)
    assert budget.allows(105.1)


def test_budget_saves_up_for_no_more_than_a_second() -> None:
    budget = SwitchBudget(0.1)
    budget.allows(0.0)
    assert budget.allows(1000.0)
    budget.spend(0.2)
    assert not budget.allows(1000.9)
    assert budget.allows(1001.1)


def test_budget_keeps_switches_below_its_share_of_the_time() -> None:
    budget = SwitchBudget(0.1)
    spent_s = 0.0
    for step in range(10_000):
        if budget.allows(step * 0.01):
            budget.spend(0.03)
            spent_s += 0.03
    assert spent_s == pytest.approx(10.0, abs=0.15)


def test_min_residency_is_so_long_that_switching_there_and_back_keeps_to_the_share() -> None:
    assert SwitchBudget(0.1).min_residency_s(0.05) == pytest.approx(0.5)


def test_steps_of_varying_length_do_not_look_slowed_down() -> None:
    costs = SwitchCosts()
    for number in range(64):
        seconds = 0.010 if number % 4 < 2 else 0.014
        costs.note_step(4, 4, seconds, 0.002 if number % 2 else 0.0)
    assert abs(costs.slowdown.value or 0.0) < 0.2
