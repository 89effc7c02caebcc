"""Rotary tables hold the frequencies and angles that transformers uses."""

from __future__ import annotations

import pytest
import torch
from transformers_twins import twin

from evenflow.execution.kernels.torch_ops import TorchOps
from evenflow.models.rotary import RotaryTable, rotary_frequencies
from evenflow.models.spec import RopeScaling


@pytest.mark.parametrize(
    "name", ["llama", "llama-linear", "llama-llama3", "llama-yarn", "llama-yarn-wide"]
)
def test_rotary_table_equals_transformers_bit_for_bit(name: str) -> None:
    model = twin(name)
    positions = torch.tensor([0, 1, 63, 17])
    cos, sin = RotaryTable.from_spec(model.spec, TorchOps()).rows(positions)
    their_cos, their_sin = model.reference.model.rotary_emb(cos, positions[None])
    assert torch.equal(torch.cat([cos, cos], dim=-1), their_cos[0])
    assert torch.equal(torch.cat([sin, sin], dim=-1), their_sin[0])


def test_rotary_frequencies_keep_fast_and_stretch_slow_pairs_when_llama3() -> None:
    scaling = RopeScaling("llama3", 8.0, original_max_position_embeddings=8192)
    plain, _ = rotary_frequencies(64, 500_000.0)
    stretched, magnitude = rotary_frequencies(64, 500_000.0, scaling)
    assert magnitude == 1.0
    assert stretched[0] == plain[0]
    assert stretched[-1] == plain[-1] / 8.0


def test_rotary_frequencies_take_the_magnitude_given_when_yarn() -> None:
    scaling = RopeScaling("yarn", 4.0, attention_factor=0.75)
    assert rotary_frequencies(64, 10_000.0, scaling)[1] == 0.75


def test_rotary_frequencies_step_between_pairs_when_yarn_band_has_no_width() -> None:
    scaling = RopeScaling("yarn", 2.0, original_max_position_embeddings=16, beta_slow=4.0)
    plain, _ = rotary_frequencies(16, 10_000.0)
    stretched, _ = rotary_frequencies(16, 10_000.0, scaling)
    assert stretched[0] == plain[0]
    torch.testing.assert_close(stretched[1:], plain[1:] / 2.0)
