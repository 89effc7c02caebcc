from __future__ import annotations

import math
import random

import pytest

from evenflow.execution.costs import (
    ClosedFormCosts,
    DecodeCoefficients,
    PrefillCoefficients,
    StepShape,
    load_profile,
)
from evenflow.execution.costs.closed_form import fit_closed_form
from evenflow.execution.costs.measured import MeasuredStep
from support.step_shapes import chunk, decodes, measured

COSTS = ClosedFormCosts(
    PrefillCoefficients(0.010, 1e-4, 2e-8),
    (DecodeCoefficients(0.020, 1e-6, 1e-3), DecodeCoefficients(0.030, 2e-6, 5e-4, min_batch=10)),
    "a test",
)


def test_closed_form_charges_a_prompt_by_its_tokens_and_their_square() -> None:
    assert COSTS.step_s(chunk(100)) == pytest.approx(0.010 + 100e-4 + 1e4 * 2e-8)


def test_closed_form_chunks_of_a_prompt_add_up_to_the_prompt() -> None:
    pieces = COSTS.step_s(chunk(60)) + COSTS.step_s(chunk(30, 60)) + COSTS.step_s(chunk(10, 90))
    assert pieces == pytest.approx(COSTS.step_s(chunk(100)) + 2 * 0.010)


def test_closed_form_takes_the_coefficients_of_the_batch() -> None:
    assert COSTS.step_s(decodes(9, 50)) == pytest.approx(0.020 + 450e-6 + 9e-3)
    assert COSTS.step_s(decodes(10, 50)) == pytest.approx(0.030 + 500 * 2e-6 + 5e-3)


def test_closed_form_pays_one_constant_for_a_mixed_step() -> None:
    mixed = StepShape(((100, 0),), 4, 80)
    parts = COSTS.step_s(chunk(100)) + COSTS.step_s(decodes(4, 20))
    assert COSTS.step_s(mixed) == pytest.approx(parts - COSTS.prefill.constant_s)


def test_closed_form_charges_nothing_for_nothing() -> None:
    assert load_profile("distserve-opt-13b-tp1").costs().step_s(StepShape()) == 0.0


def test_closed_form_of_distserve_gives_its_published_times() -> None:
    costs = load_profile("distserve-opt-13b-tp1").costs()
    # OPT-13B on one A100, in ms: prefill 18.10 + 0.1019 l + 7.12e-6 l^2, decode in small batches
    # 19.93 + 6.27e-4 ctx + 0.0385 batch, in large ones 7.17 + 5.80e-4 ctx + 0.158 batch; the host
    # takes 2 + 1e-4 per token of context.
    prefill = 18.10 + 0.1019 * 512 + 7.12e-6 * 512**2 + 2 + 0.0512
    small = 19.93 + 6.27e-4 * 32 * 300 + 0.0385 * 32 + 2 + 0.96
    large = 7.17 + 5.80e-4 * 128 * 300 + 0.158 * 128 + 2 + 3.84
    assert costs.step_s(chunk(512)) * 1e3 == pytest.approx(prefill, rel=2e-3)
    assert costs.step_s(decodes(32, 300)) * 1e3 == pytest.approx(small, rel=2e-3)
    assert costs.step_s(decodes(128, 300)) * 1e3 == pytest.approx(large, rel=2e-3)


def test_fit_closed_form_finds_the_coefficients_of_exact_times() -> None:
    costs = ClosedFormCosts(COSTS.prefill, COSTS.decodes[:1], "a test")
    shapes = [chunk(n, h) for n in (1, 16, 256) for h in (0, 100, 2000)]
    shapes += [decodes(b, c) for b in (1, 8, 64) for c in (16, 500)]
    fitted = fit_closed_form(measured(costs, *shapes), "a test")
    for shape in [*shapes, StepShape(((64, 32), (5, 0)), 7, 900)]:
        assert fitted.step_s(shape) == pytest.approx(costs.step_s(shape))


def test_fit_closed_form_gives_no_negative_coefficient_when_times_fall() -> None:
    steps = [MeasuredStep(chunk(n), 0.01 - n * 1e-6) for n in (1, 100, 500)]
    steps += [MeasuredStep(decodes(b, 10), 0.01 - b * 1e-5) for b in (1, 10, 50)]
    fitted = fit_closed_form(steps, "a test")
    terms = (*vars_of(fitted.prefill), *vars_of(fitted.decodes[0]))
    assert min(terms) >= 0
    assert math.isclose(fitted.prefill.per_token_s, 0.0, abs_tol=1e-12)


def test_fit_closed_form_is_the_best_of_all_non_negative_ones() -> None:
    rng = random.Random(3)
    shapes = [chunk(rng.randint(1, 300), rng.randint(0, 900)) for _ in range(12)]
    shapes += [decodes(rng.randint(1, 60), rng.randint(1, 900)) for _ in range(12)]
    steps = [MeasuredStep(shape, rng.uniform(0.01, 0.05)) for shape in shapes]
    fitted = fit_closed_form(steps, "a test")
    least = squared_error(fitted, steps)
    for _ in range(300):
        prefill = [value * rng.uniform(0.8, 1.25) for value in vars_of(fitted.prefill)]
        decode = [value * rng.uniform(0.8, 1.25) for value in vars_of(fitted.decodes[0])]
        prefill[rng.randrange(3)] += rng.choice([0.0, 1e-6])
        near = ClosedFormCosts(
            PrefillCoefficients(*prefill), (DecodeCoefficients(*decode),), "a test"
        )
        assert squared_error(near, steps) >= least


def vars_of(coefficients: PrefillCoefficients | DecodeCoefficients) -> list[float]:
    if isinstance(coefficients, PrefillCoefficients):
        return [coefficients.constant_s, coefficients.per_token_s, coefficients.per_square_s]
    return [
        coefficients.constant_s,
        coefficients.per_context_token_s,
        coefficients.per_request_s,
    ]


def squared_error(costs: ClosedFormCosts, steps: list[MeasuredStep]) -> float:
    return sum((costs.step_s(step.shape) / step.seconds - 1) ** 2 for step in steps)
