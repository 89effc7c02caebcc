"""The roofline's few figures against tens of thousands of measured operators and layers."""

from __future__ import annotations

import pytest

from evenflow.execution.costs import StepShape
from evenflow.simulation.roofline import RooflineCosts
from evenflow.simulation.shapes import load_device, load_model
from evenflow.simulation.tables import load_table_costs
from support.profile_folder import real_profiles
from support.step_shapes import chunk, decodes

STEPS = {
    "one decode": decodes(1, 500),
    "64 decodes": decodes(64, 1000),
    "256 decodes": decodes(256, 500),
    "a prompt": chunk(512),
    "a long prompt": chunk(2048),
    "a chunk beside decodes": StepShape(((512, 1000),), 64, 64_000),
}


@pytest.mark.parametrize(
    ("model_name", "device_name", "tp"),
    [("llama-3-8b", "a100", 1), ("llama-3-70b", "h100", 4), ("llama-3.1-8b", "rtx-4090", 1)],
)
def test_roofline_is_near_the_tables(model_name: str, device_name: str, tp: int) -> None:
    model, device = load_model(model_name), load_device(device_name)
    tables = load_table_costs(real_profiles(), model, device, tp=tp)
    roofline = RooflineCosts(model, device, tp=tp)
    errors = {name: roofline.step_s(s) / tables.step_s(s) - 1 for name, s in STEPS.items()}
    assert max(map(abs, errors.values())) < 0.22, errors
