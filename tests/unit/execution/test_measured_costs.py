from __future__ import annotations

import logging

import pytest

from evenflow.core.errors import ConfigError
from evenflow.execution.costs import MeasuredCosts, MeasuredStep, StepShape
from support.step_shapes import chunk, decodes, measured


class Stairs:
    """Costs with a kink in the tokens, and attention in proportion to pairs of tokens."""

    description = "a test"

    def step_s(self, shape: StepShape) -> float:
        pairs = sum(new * before + new * (new + 1) / 2 for new, before in shape.chunks)
        tokens = shape.num_tokens
        body = 0.01 + max(0, tokens - 16) * 1e-4
        return body + pairs * 1e-7 + shape.num_decode_context_tokens * 2e-7


CHUNKS = [chunk(n, h) for n in (1, 4, 16, 64, 256) for h in (0, 500, 2000)]
DECODES = [decodes(b, c) for b in (1, 4, 16, 64) for c in (10, 500, 1000)]
STEPS = measured(Stairs(), *CHUNKS, *DECODES)
COSTS = MeasuredCosts(STEPS, "a test")


@pytest.mark.parametrize("step", STEPS)
def test_measured_costs_are_exact_where_something_was_measured(step: MeasuredStep) -> None:
    assert COSTS.step_s(step.shape) == pytest.approx(step.seconds, rel=1e-9)


@pytest.mark.parametrize(
    "shape",
    [
        decodes(40, 700),
        chunk(100, 900),
        StepShape(((100, 300),), 32, 32 * 600),
        StepShape(((40, 0), (9, 1200)), 20, 20 * 30),
        StepShape(((5, 0), (7, 0), (30, 11))),
    ],
)
def test_measured_costs_are_near_in_between_and_for_mixed_steps(shape: StepShape) -> None:
    assert COSTS.step_s(shape) == pytest.approx(Stairs().step_s(shape), rel=0.02)


def test_measured_costs_extrapolate_attention_only_and_warn_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    costs = MeasuredCosts(STEPS, "a test")
    with caplog.at_level(logging.WARNING):
        for context in (3000, 5000):
            shape = decodes(16, context)
            assert costs.step_s(shape) == pytest.approx(Stairs().step_s(shape), rel=1e-6)
    assert [record.message for record in caplog.records if "decodes" in record.message]
    assert len(caplog.records) == 1


def test_measured_costs_charge_nothing_for_nothing() -> None:
    assert COSTS.step_s(StepShape()) == 0.0


def test_measured_costs_ignore_mixed_steps() -> None:
    mixed = MeasuredStep(StepShape(((64, 0),), 4, 40), 99.0)
    assert MeasuredCosts([*STEPS, mixed], "").step_s(chunk(64)) < 1


def test_measured_costs_stand_noise_that_makes_more_work_cheaper() -> None:
    noisy = [MeasuredStep(decodes(4, c), s) for c, s in ((10, 0.021), (500, 0.020))]
    costs = MeasuredCosts([*noisy, *measured(Stairs(), *CHUNKS)], "a test")
    assert costs.step_s(decodes(4, 250)) == pytest.approx(0.0205, rel=0.03)


@pytest.mark.parametrize("shapes", [[], CHUNKS, DECODES])
def test_measured_costs_need_chunks_and_decodes(shapes: list[StepShape]) -> None:
    with pytest.raises(ConfigError, match="no table"):
        MeasuredCosts(measured(Stairs(), *shapes), "a test")
