import logging
import random
from pathlib import Path

import pytest

from evenflow.core.errors import ConfigError
from evenflow.execution.costs import CostModel, StepShape
from evenflow.simulation.collectives import ClosedFormCollectives
from evenflow.simulation.layer_attention import LayerAttention
from evenflow.simulation.layer_tables import (
    layer_table_costs,
    layer_table_names,
    load_layer_tables,
)
from evenflow.simulation.profile_tables import read_table
from evenflow.simulation.shapes import LinkShape, ModelShape, MoeShape, load_model
from support.profile_folder import (
    KEY,
    LAYERS,
    attention_us,
    real_profiles,
    write_layer_tables,
    write_table,
)

NUM_LAYERS = 3


def tiny(moe: MoeShape | None = None) -> ModelShape:
    return ModelShape(
        name="tiny-1b",
        num_layers=NUM_LAYERS,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=1000,
        max_model_len=1024,
        source="made up",
        moe=moe,
    )


def costs(folder: Path) -> CostModel:
    write_layer_tables(folder)
    return layer_table_costs(load_layer_tables(folder, "GPU", "Tiny-1B"), tiny())


def step_us(
    num_tokens: int,
    num_requests: int,
    attention: float,
) -> float:
    """The sum over layers, written out."""
    occurrences = {
        layer: count if layer in ("embedding", "final_layernorm") else count * NUM_LAYERS
        for layer, count in LAYERS.items()
    }
    body = sum(
        occurrences[layer] * (10 + num_tokens * (index + 1) / 10)
        for index, layer in enumerate(LAYERS)
    )
    return body + 120 + 2 * num_requests + NUM_LAYERS * attention


def test_decode_step_is_the_sum_over_layers(tmp_path: Path) -> None:
    shape = StepShape((), 4, 4 * 32)
    expected = step_us(4, 4, attention_us(0, 0, 4, 32))
    assert costs(tmp_path).step_s(shape) == pytest.approx(expected * 1e-6)


def test_prompt_step_is_the_sum_over_layers(tmp_path: Path) -> None:
    expected = step_us(32, 1, attention_us(32, 16, 0, 0))
    assert costs(tmp_path).step_s(StepShape(((32, 16),))) == pytest.approx(expected * 1e-6)


def test_mixed_step_is_the_sum_over_layers(tmp_path: Path) -> None:
    expected = step_us(18, 3, attention_us(16, 64, 2, 64))
    shape = StepShape(((16, 64),), 2, 128)
    assert costs(tmp_path).step_s(shape) == pytest.approx(expected * 1e-6)


def test_empty_step_takes_no_time(tmp_path: Path) -> None:
    assert costs(tmp_path).step_s(StepShape()) == 0


@pytest.mark.parametrize(
    ("chunks", "decodes", "context"),
    [
        pytest.param(((24, 10),), 0, 0, id="between chunk sizes"),
        pytest.param(((24, 40),), 3, 40, id="between all points"),
        pytest.param(((20, 36), (30, 24)), 2, 48, id="two chunks"),
    ],
)
def test_attention_is_exact_between_points_for_sums_of_pairs(
    tmp_path: Path, chunks: tuple[tuple[int, int], ...], decodes: int, context: int
) -> None:
    write_layer_tables(tmp_path)
    attention = load_layer_tables(tmp_path, "GPU", "Tiny-1B").attention
    num_new = sum(new for new, _ in chunks)
    pairs = sum(new * (before + new / 2) for new, before in chunks)
    expected = attention_us(num_new, 0, decodes, context) + 0.01 * (pairs - num_new**2 / 2)
    assert attention.mixed_s(chunks, decodes, context) * 1e6 == pytest.approx(expected)


def test_attention_is_close_between_sizes_for_a_prompt_without_history(tmp_path: Path) -> None:
    write_layer_tables(tmp_path)
    attention = load_layer_tables(tmp_path, "GPU", "Tiny-1B").attention
    got = attention.mixed_s(((48, 0),), 0, 0) * 1e6
    assert got == pytest.approx(attention_us(48, 0, 0, 0), rel=0.03)


def test_attention_counts_a_chunk_of_one_token_as_a_decode(tmp_path: Path) -> None:
    write_layer_tables(tmp_path)
    attention = load_layer_tables(tmp_path, "GPU", "Tiny-1B").attention
    assert attention.mixed_s(((1, 31),), 1, 32) == attention.decode_s(2, 32)


def test_attention_of_many_short_prompts_costs_less_than_of_one_long(tmp_path: Path) -> None:
    write_layer_tables(tmp_path)
    attention = load_layer_tables(tmp_path, "GPU", "Tiny-1B").attention
    one, four = ((64, 0),), ((16, 0),) * 4
    shortest = attention.mixed_s(((16, 0),), 0, 0)
    assert shortest < attention.mixed_s(four, 0, 0) < attention.mixed_s(one, 0, 0)


def test_attention_grows_with_everything(tmp_path: Path) -> None:
    write_layer_tables(tmp_path)
    attention = load_layer_tables(tmp_path, "GPU", "Tiny-1B").attention
    base = attention.mixed_s(((24, 20),), 3, 30)
    assert attention.mixed_s(((25, 20),), 3, 30) > base
    assert attention.mixed_s(((24, 21),), 3, 30) > base
    assert attention.mixed_s(((24, 20),), 4, 30) > base
    assert attention.mixed_s(((24, 20),), 3, 31) > base


def test_attention_warns_once_about_larger_chunks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_layer_tables(tmp_path)
    attention = load_layer_tables(tmp_path, "GPU", "Tiny-1B").attention
    with caplog.at_level(logging.WARNING):
        larger = attention.mixed_s(((96, 0),), 0, 0)
        attention.mixed_s(((120, 0),), 0, 0)
    assert larger > attention.mixed_s(((64, 0),), 0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "attention of Tiny-1B on GPU was measured up to 64 tokens of a chunk; times beyond are "
        "extrapolated in proportion, first at 96"
    ]


def test_attention_takes_the_last_measured_addition_when_all_seats_decode(tmp_path: Path) -> None:
    write_layer_tables(tmp_path)
    attention = load_layer_tables(tmp_path, "GPU", "Tiny-1B").attention
    added = attention.mixed_s(((16, 0),), 4, 32) - attention.decode_s(4, 32)
    beside_all = attention.mixed_s(((16, 0),), 8, 32) - attention.decode_s(8, 32)
    assert beside_all == pytest.approx(added)


def test_attention_names_the_hole_in_a_grid() -> None:
    points = {(0, 0, 1, 16): 1.0, (0, 0, 2, 16): 1.0, (16, 0, 2, 16): 2.0, (16, 0, 0, 0): 1.0}
    with pytest.raises(ConfigError, match=r"hole at .* = \(16, 0, 1, 16\)"):
        LayerAttention(points, "a table")


def test_experts_are_charged_by_those_that_tokens_touch(tmp_path: Path) -> None:
    write_layer_tables(tmp_path, experts=True)
    moe = MoeShape(num_experts=8, num_experts_per_token=2, intermediate_size=32)
    tables = load_layer_tables(tmp_path, "GPU", "Tiny-1B")
    with_experts = layer_table_costs(tables, tiny(moe))
    without = layer_table_costs(tables, tiny())
    shape = StepShape((), 1, 16)
    added_us = (with_experts.step_s(shape) - without.step_s(shape)) * 1e6
    assert added_us == pytest.approx(NUM_LAYERS * (7 * 2 + 1))


def test_replicas_step_as_the_slowest_and_pay_for_the_exchange(tmp_path: Path) -> None:
    write_layer_tables(tmp_path, experts=True)
    model = tiny(MoeShape(num_experts=8, num_experts_per_token=2, intermediate_size=32))
    tables = load_layer_tables(tmp_path, "GPU", "Tiny-1B")
    link = LinkShape(bytes_per_s=1e9, latency_s=5e-6)
    lockstep = layer_table_costs(tables, model, num_replicas=2, link=link)
    replica = layer_table_costs(tables, tiny())
    # Three decodes: one replica has two of them, the other one.
    experts = tables.experts
    assert experts is not None
    touched = 8 * (1 - (6 / 8) ** 3)
    exchange_s = 2 * (5e-6 + 2 * 64 * 2 / 1e9)
    expected = replica.step_s(StepShape((), 2, 64)) + NUM_LAYERS * (
        experts(touched / 2, 1.5) + exchange_s
    )
    assert lockstep.step_s(StepShape((), 3, 96)) == pytest.approx(expected)


def test_replicas_share_a_prompt_and_decodes(tmp_path: Path) -> None:
    write_layer_tables(tmp_path, experts=True)
    model = tiny(MoeShape(num_experts=8, num_experts_per_token=2, intermediate_size=32))
    tables = load_layer_tables(tmp_path, "GPU", "Tiny-1B")
    link = LinkShape(bytes_per_s=1e9)
    lockstep = layer_table_costs(tables, model, num_replicas=2, link=link)
    two = lockstep.step_s(StepShape(((16, 0), (16, 0)), 2, 64))
    one = lockstep.step_s(StepShape(((32, 0),), 2, 64))
    assert two < one


def test_shared_layers_pay_two_sums_each(tmp_path: Path) -> None:
    write_layer_tables(tmp_path, tp=2)
    tables = load_layer_tables(tmp_path, "GPU", "Tiny-1B", tp=2)
    free = ClosedFormCollectives(LinkShape(bytes_per_s=1e18))
    slow = ClosedFormCollectives(LinkShape(bytes_per_s=1e18, latency_s=1e-3))
    shape = StepShape((), 2, 64)
    without, with_sums = (
        layer_table_costs(tables, tiny(), collectives=collectives).step_s(shape)
        for collectives in (free, slow)
    )
    assert with_sums - without == pytest.approx(2 * NUM_LAYERS * 1e-3)


def test_shared_layers_need_a_link(tmp_path: Path) -> None:
    write_layer_tables(tmp_path, tp=2)
    tables = load_layer_tables(tmp_path, "GPU", "Tiny-1B", tp=2)
    with pytest.raises(ConfigError, match="unknown link"):
        layer_table_costs(tables, tiny())


def test_load_names_what_there_is_when_a_model_is_missing(tmp_path: Path) -> None:
    write_layer_tables(tmp_path)
    with pytest.raises(ConfigError, match="Tiny-1B on GPU x 1"):
        load_layer_tables(tmp_path, "GPU", "Huge-1T")


def test_load_names_the_missing_column(tmp_path: Path) -> None:
    write_layer_tables(tmp_path)
    write_table(tmp_path, "vllm_layer_dense", [{**KEY, "layer": "qkv_proj", "tokens": 1}])
    with pytest.raises(ConfigError, match="lacks the column 'time_us'"):
        load_layer_tables(tmp_path, "GPU", "Tiny-1B")


def test_layer_table_names_are_empty_without_tables(tmp_path: Path) -> None:
    assert layer_table_names(tmp_path) == set()


def test_real_attention_is_exact_at_measured_points_and_close_beside_them() -> None:
    folder = real_profiles()
    tables = load_layer_tables(folder, "RTXPRO6000", "Llama-3.1-8B")
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    where = {"gpu": "RTXPRO6000", "model": "Llama-3.1-8B", "tp": "1"}
    rows = [
        tuple(map(float, row))
        for row in read_table(folder, "vllm_layer_attention", columns, where)
        if int(row[0])
    ]
    errors = []
    for chunk, history, decodes, context, time_us in random.Random(0).sample(rows, 2000):
        got = tables.attention.mixed_s(((int(chunk), int(history)),), int(decodes), context) * 1e6
        on_grid = all(int(v) & (int(v) - 1) == 0 for v in (chunk, history, decodes, context))
        if on_grid:
            assert got == pytest.approx(time_us, rel=1e-6)
        else:
            errors.append(abs(got / time_us - 1))
    errors.sort()
    assert errors[len(errors) // 2] < 0.03
    assert errors[int(0.95 * len(errors))] < 0.15


def test_real_step_times_are_of_the_size_that_weights_and_bandwidth_say() -> None:
    tables = load_layer_tables(real_profiles(), "RTX4090", "Llama-3.1-8B")
    model = load_model("llama-3.1-8b")
    step_s = layer_table_costs(tables, model).step_s(StepShape((), 1, 100))
    # 15 GB of weights at 1,008 GB/s.
    assert 0.015 < step_s < 0.02
