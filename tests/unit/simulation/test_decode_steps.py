"""Many steps of decodes at once take what they take one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evenflow.execution.costs import (
    ClosedFormCosts,
    CostModel,
    DecodeCoefficients,
    MeasuredCosts,
    PrefillCoefficients,
    StepShape,
)
from evenflow.simulation.layer_tables import layer_table_costs, load_layer_tables
from evenflow.simulation.roofline import RooflineCosts
from evenflow.simulation.shapes import LinkShape, MoeShape, load_device, load_model
from support.profile_folder import write_layer_tables
from support.step_shapes import chunk, decodes, measured

Build = Callable[[Path], CostModel]


def closed_form(_: Path) -> CostModel:
    few, many = DecodeCoefficients(0.01, 1e-7, 1e-5), DecodeCoefficients(0.02, 3e-7, 7e-6, 6)
    return ClosedFormCosts(PrefillCoefficients(0.1, 0.1, 0.1), (few, many), "a test", 2e-3, 3e-8)


def roofline(_: Path) -> CostModel:
    return RooflineCosts(load_model("llama-3-8b"), load_device("a100"), overhead_s=1e-3)


def pipeline(_: Path) -> CostModel:
    return RooflineCosts(load_model("deepseek-v2-lite"), load_device("h100"), tp=2, pp=3)


def tables(_: Path) -> CostModel:
    batches = [decodes(batch, context) for batch in (1, 3, 8) for context in (4, 16, 30, 64)]
    return MeasuredCosts(measured(roofline(_), chunk(1), chunk(9), *batches), "a test")


def layers(folder: Path) -> CostModel:
    write_layer_tables(folder)
    model = load_model("llama-3-8b")
    return layer_table_costs(load_layer_tables(folder, "GPU", "Tiny-1B"), model)


def replicas(folder: Path) -> CostModel:
    write_layer_tables(folder, experts=True)
    moe = MoeShape(num_experts=8, num_experts_per_token=2, intermediate_size=32)
    model = load_model("llama-3-8b").model_copy(update={"moe": moe})
    loaded = load_layer_tables(folder, "GPU", "Tiny-1B")
    return layer_table_costs(loaded, model, num_replicas=3, link=LinkShape(bytes_per_s=1e9))


@pytest.mark.parametrize("build", [closed_form, roofline, pipeline, tables, layers, replicas])
def test_steps_of_decodes_take_the_same_together(build: Build, tmp_path: Path) -> None:
    costs = build(tmp_path)
    for batch in (1, 2, 3, 5, 8, 11):
        contexts = np.arange(batch * 3 + 1, batch * 90, batch)
        one_by_one = [costs.step_s(StepShape((), batch, context)) for context in contexts.tolist()]
        together = costs.decode_steps_s(batch, contexts)
        np.testing.assert_allclose(together, one_by_one, rtol=1e-14)
        assert len(set(one_by_one)) > len(contexts) / 3  # they differ


def test_steps_beyond_a_table_warn_with_the_first_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tables(tmp_path).decode_steps_s(3, np.arange(3 * 60, 3 * 80, 3))
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "up to 64" in warning
    assert "first at 65" in warning
