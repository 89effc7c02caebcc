"""Rounding to 4 and 8 bits, against slow float64 oracles; gguf reads the bytes back."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from evenflow.core.gguf_file import GGMLType
from evenflow.models.spec import ModelSpec, MoeSpec
from evenflow.models.weights.dummy import DummyWeights
from evenflow.models.weights.rounding import Q4_1, Q8_0, RoundedWeights, round_rows

GROUP = 32


def values(num_rows: int = 24, row_size: int = 96) -> torch.Tensor:
    """Rows of very different size, some far from zero, some with an outlier."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(num_rows, row_size, generator=generator)
    rows *= torch.logspace(-3, 1, num_rows).unsqueeze(1)
    rows[1::3] += 0.5
    rows[2::3, 7] *= 9
    return rows


def read(rows: torch.Tensor, storage: GGMLType) -> np.ndarray:
    return gguf.dequantize(rows.numpy(), Kind[storage.name]).astype(np.float64)


def groups_of(rows: torch.Tensor) -> np.ndarray:
    return rows.double().numpy().reshape(-1, GROUP)


def fitted(group: np.ndarray) -> np.ndarray:
    """Return a group as 16 levels render it: spanned, then fitted three times by least squares."""
    scale, offset = (group.max() - group.min()) / 15, group.min()
    for _ in range(3):
        codes = np.clip(np.rint((group - offset) / scale), 0, 15)
        scale, offset = np.polyfit(codes, group, 1)
    scale, offset = float(np.float16(scale)), float(np.float16(offset))
    return np.clip(np.rint((group - offset) / scale), 0, 15) * scale + offset


def test_q8_0_is_the_nearest_code_of_the_widest_scale() -> None:
    rows = values()
    rounded = read(round_rows(rows, Q8_0), Q8_0).reshape(-1, GROUP)
    for found, group in zip(rounded, groups_of(rows), strict=True):
        scale = float(np.float16(np.abs(group).max() / 127))
        nearest = np.clip(np.rint(group / scale), -127, 127) * scale
        # Single ties may fall the other way in fp32; they are as near.
        np.testing.assert_allclose(np.abs(found - group), np.abs(nearest - group), atol=1e-6)


def test_q4_1_equals_a_fit_by_least_squares() -> None:
    rows = values()
    found = read(round_rows(rows, Q4_1), Q4_1).reshape(-1, GROUP)
    expected = np.stack([fitted(group) for group in groups_of(rows)])
    size = np.abs(expected).max(1, keepdims=True)
    # A scale that rounds to the next fp16 moves a group by 2^-11 of its size.
    assert (np.abs(found - expected) <= size * 2**-11).mean() > 0.99


def test_q4_1_is_nearer_than_spanning_the_range() -> None:
    rows = values()
    spanned = gguf.dequantize(gguf.quantize(rows.numpy(), Kind.Q4_1), Kind.Q4_1)
    found = read(round_rows(rows, Q4_1), Q4_1)
    errors = [((x - rows.numpy()) ** 2).reshape(-1, GROUP).sum(1) for x in (found, spanned)]
    ratios = errors[0] / errors[1]
    assert ratios.mean() < 0.9
    assert ratios.max() < 1.15  # fp16 costs a group that lies far from zero more than it gains


@pytest.mark.parametrize(("storage", "least", "most"), [(Q8_0, -127, 127), (Q4_1, 0, 15)])
def test_values_of_the_type_come_back_as_they_were(
    storage: GGMLType, least: int, most: int
) -> None:
    codes = torch.randint(least, most + 1, (6, 64), generator=torch.Generator().manual_seed(1))
    codes[:, ::GROUP], codes[:, 1::GROUP] = least, most
    offset = 0.0 if storage == Q8_0 else -0.75
    rows = codes * 0.03125 + offset
    assert np.array_equal(read(round_rows(rows, storage), storage), rows.numpy())


@pytest.mark.parametrize("storage", [Q8_0, Q4_1], ids=["Q8_0", "Q4_1"])
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-12])
def test_a_group_of_one_value_keeps_it(storage: GGMLType, value: float) -> None:
    rows = torch.full((2, 64), value)
    np.testing.assert_allclose(read(round_rows(rows, storage), storage), value, 1e-3, atol=1e-7)


def test_rows_are_rounded_each_by_itself() -> None:
    rows = values(num_rows=1100, row_size=1024)  # more groups than are rounded at a time
    whole = round_rows(rows, Q4_1)
    assert torch.equal(whole[1090:], round_rows(rows[1090:], Q4_1))


SPEC = ModelSpec(
    architecture="qwen3_moe",
    vocab_size=8,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    attention_bias=True,
    moe=MoeSpec(2, 1, 48, norm_topk_prob=True, dense_layers=frozenset({0})),
)


@pytest.mark.parametrize(("precision", "storage"), [("w4a8", Q4_1), ("w8a8", Q8_0)])
def test_rounded_weights_have_few_bits_where_they_are_multiplied(
    precision: str, storage: GGMLType
) -> None:
    weights = RoundedWeights(DummyWeights(SPEC, 0), SPEC, precision)
    found = {}
    for name in weights.names():
        stored = weights.stored(name)
        found[name] = None if stored is None else stored.type
        if stored is not None:
            assert (len(stored.rows), stored.in_features) == weights.shape(name)
            expected = round_rows(weights.tensor(name), stored.type)
            assert torch.equal(stored.rows, expected)
    attention, experts = "model.layers.1.self_attn", "model.layers.1.mlp"
    expected_types = {
        "model.embed_tokens.weight": Q8_0,
        "lm_head.weight": Q8_0,
        f"{attention}.k_proj.weight": storage,
        f"{attention}.o_proj.weight": storage,
        f"{experts}.experts.1.gate_proj.weight": storage,
        f"{experts}.experts.1.down_proj.weight": None,  # rows of 48 are no whole number of groups
        f"{experts}.gate.weight": None,
        f"{attention}.q_norm.weight": None,
        f"{attention}.q_proj.bias": None,
        "model.layers.0.mlp.down_proj.weight": storage,
    }
    assert {name: found[name] for name in expected_types} == expected_types
