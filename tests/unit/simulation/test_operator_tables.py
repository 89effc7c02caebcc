import logging
from pathlib import Path

import numpy as np
import pytest

from evenflow.core.errors import ConfigError
from evenflow.execution.costs import CostModel, StepShape
from evenflow.simulation.collective_tables import MeasuredCollectives
from evenflow.simulation.gemm_tables import GemmTables
from evenflow.simulation.operator_attention import Heads, OperatorAttention
from evenflow.simulation.operator_tables import SMALLEST_KERNEL_S, operator_table_costs
from evenflow.simulation.shapes import DeviceShape, ModelShape, MoeShape, load_device, load_model
from support.profile_folder import real_profiles, write_table

GEMM_SHAPES = ((128, 64), (64, 64), (256, 64), (64, 128), (1000, 64))
"""(n, k) of Tiny-1B: queries, keys and values; output; gate and up; down; logits."""


def tiny(moe: MoeShape | None = None) -> ModelShape:
    return ModelShape(
        name="tiny-1b",
        num_layers=3,
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


def device() -> DeviceShape:
    return load_device("h100").model_copy(update={"name": "gpu", "bandwidth_bytes_per_s": 1e15})


def gemm_ms(m: float, n: int, k: int) -> float:
    return 0.001 * n * k / 4096 * (1 + m / 10)


def prompt_ms(count: int, length: int) -> float:
    return 0.01 + 1e-4 * count * length**2


def decode_ms(count: int, length: int) -> float:
    return 0.01 + 1e-4 * count * length


def write_operator_tables(folder: Path, shapes: tuple[tuple[int, int], ...] = GEMM_SHAPES) -> None:
    write_table(
        folder,
        "gpu_gemm",
        [
            {"dtype": "bfloat16", "m": m, "n": n, "k": k, "latency_ms": gemm_ms(m, n, k)}
            for n, k in shapes
            for m in (1, 8, 64)
        ],
    )
    heads = {"kv_dtype": "bfloat16", "heads": 4, "kv_heads": 2, "head_dim": 16}
    for phase, length_name, law in (
        ("context", "isl", prompt_ms),
        ("generation", "kv_len", decode_ms),
    ):
        write_table(
            folder,
            f"gpu_attention_{phase}",
            [
                {**heads, "batch_size": b, length_name: n, "latency_ms": law(b, n)}
                for b in (1, 2, 4)
                for n in (1, 16, 64, 256)
                if b * n <= 512
            ],
        )


def costs(folder: Path) -> CostModel:
    write_operator_tables(folder)
    return operator_table_costs(folder, "gpu", device(), tiny())


def body_s(num_tokens: int, num_requests: int) -> float:
    """Everything but attention, written out."""
    layer = sum(gemm_ms(num_tokens, n, k) for n, k in GEMM_SHAPES[:4]) * 1e-3
    vectors = 4 * SMALLEST_KERNEL_S
    return 3 * (layer + vectors) + gemm_ms(num_requests, 1000, 64) * 1e-3


def test_decode_step_is_the_sum_over_operators(tmp_path: Path) -> None:
    expected = body_s(2, 2) + 3 * decode_ms(2, 64) * 1e-3
    assert costs(tmp_path).step_s(StepShape((), 2, 128)) == pytest.approx(expected)


def test_prompt_step_is_the_sum_over_operators(tmp_path: Path) -> None:
    expected = body_s(64, 1) + 3 * prompt_ms(1, 64) * 1e-3
    assert costs(tmp_path).step_s(StepShape(((64, 0),))) == pytest.approx(expected)


def test_chunk_attends_like_a_prompt_with_as_many_pairs(tmp_path: Path) -> None:
    write_operator_tables(tmp_path)
    attention = OperatorAttention(tmp_path, "gpu", Heads(4, 2, 16))
    whole = attention.mixed_s(((64, 0),), 0, 0)
    first, second = attention.mixed_s(((32, 0),), 0, 0), attention.mixed_s(((32, 32),), 0, 0)
    assert first + second == pytest.approx(whole + 0.01e-3)  # one kernel more


def test_small_chunk_takes_at_least_what_a_decode_of_its_context_does(tmp_path: Path) -> None:
    write_operator_tables(tmp_path)
    attention = OperatorAttention(tmp_path, "gpu", Heads(4, 2, 16))
    assert attention.mixed_s(((1, 255),), 0, 0) >= attention.decode_s(1, 256)


def test_mixed_step_adds_chunks_and_decodes(tmp_path: Path) -> None:
    write_operator_tables(tmp_path)
    attention = OperatorAttention(tmp_path, "gpu", Heads(4, 2, 16))
    both = attention.mixed_s(((16, 0),), 2, 64)
    assert both == pytest.approx(attention.mixed_s(((16, 0),), 0, 0) + attention.decode_s(2, 64))


def test_decodes_take_the_same_at_once_and_one_by_one(tmp_path: Path) -> None:
    write_operator_tables(tmp_path)
    attention = OperatorAttention(tmp_path, "gpu", Heads(4, 2, 16))
    contexts = np.arange(10.0, 600.0)
    one_by_one = [attention.decode_s(3, context) for context in contexts.tolist()]
    np.testing.assert_allclose(attention.decodes_s(3, contexts), one_by_one, rtol=1e-14)


def test_attention_scales_the_nearest_heads_when_its_own_are_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_operator_tables(tmp_path)
    measured = OperatorAttention(tmp_path, "gpu", Heads(4, 2, 16))
    with caplog.at_level(logging.WARNING):
        scaled = OperatorAttention(tmp_path, "gpu", Heads(8, 8, 16))
    assert scaled.decode_s(2, 64) == pytest.approx(4 * measured.decode_s(2, 64))
    long = ((256, 0),)
    assert scaled.mixed_s(long, 0, 0) == pytest.approx(2 * measured.mixed_s(long, 0, 0))
    assert "8 over 8 heads of 16 were not measured, scaled from 4 over 2 heads" in caplog.text


def test_gemm_scales_the_nearest_shape_when_one_is_missing(tmp_path: Path) -> None:
    write_operator_tables(tmp_path, ((64, 64), (1024, 1024)))
    assert GemmTables(tmp_path, "gpu").curve(128, 64)(8) == pytest.approx(
        2 * gemm_ms(8, 64, 64) * 1e-3
    )


def test_costs_warn_once_naming_the_shapes_that_were_not_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_operator_tables(tmp_path, tuple(s for s in GEMM_SHAPES if s != (256, 64)))
    with caplog.at_level(logging.WARNING):
        operator_table_costs(tmp_path, "gpu", device(), tiny())
    assert [record.getMessage() for record in caplog.records] == [
        "bfloat16 products on gpu: not measured are the shapes (n, k) (256, 64), scaled from "
        "(128, 64)"
    ]


def test_experts_scale_the_nearest_model_when_theirs_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_operator_tables(tmp_path)
    key = {"moe_dtype": "bfloat16", "moe_tp_size": 1, "moe_ep_size": 1}
    shape = {"hidden_size": 64, "inter_size": 16, "topk": 2, "num_experts": 8}
    routing = {"distribution": "power_law_1.01"}
    write_table(
        tmp_path,
        "gpu_moe",
        [{**key, **shape, **routing, "num_tokens": n, "latency_ms": n} for n in (1, 64)],
    )
    moe = {
        width: MoeShape(num_experts=8, num_experts_per_token=2, intermediate_size=width)
        for width in (16, 32)
    }
    step = StepShape((), 2, 32)
    with caplog.at_level(logging.WARNING):
        measured = operator_table_costs(tmp_path, "gpu", device(), tiny(moe[16])).step_s(step)
        assert not caplog.records
        scaled = operator_table_costs(tmp_path, "gpu", device(), tiny(moe[32])).step_s(step)
    assert scaled - measured == pytest.approx(3 * 2e-3)
    assert "(64, 32, 2, 8) was not measured, scaled from (64, 16, 2, 8)" in caplog.text


def test_experts_need_a_table(tmp_path: Path) -> None:
    write_operator_tables(tmp_path)
    moe = MoeShape(num_experts=8, num_experts_per_token=2, intermediate_size=16)
    with pytest.raises(ConfigError, match="no experts divided over 1 devices were measured"):
        operator_table_costs(tmp_path, "gpu", device(), tiny(moe))


def write_collectives(folder: Path) -> None:
    rows = [
        ("nccl_1", "half", 128, 0.02),
        ("nccl_1", "half", 1024, 0.03),
        ("vLLM_custom_graph", "bfloat16", 128, 0.01),
        ("vLLM_custom_eager", "bfloat16", 1024, 0.001),
    ]
    write_table(
        folder,
        "collectives",
        [
            {
                "gpu": "gpu",
                "op": "all_reduce",
                "num_gpus": 2,
                "source": source,
                "dtype": dtype,
                "elements": elements,
                "latency_ms": ms,
            }
            for source, dtype, elements, ms in rows
        ],
    )


def test_all_reduce_takes_the_faster_kernel_of_each_size(tmp_path: Path) -> None:
    write_collectives(tmp_path)
    collectives = MeasuredCollectives(tmp_path, "gpu")
    assert collectives.all_reduce_s(256, 2) == pytest.approx(0.01e-3)
    assert collectives.all_reduce_s(2048, 2) == pytest.approx(0.03e-3)
    assert collectives.all_reduce_s(2048, 1) == 0


def test_all_reduce_names_the_numbers_of_devices_there_are(tmp_path: Path) -> None:
    write_collectives(tmp_path)
    with pytest.raises(ConfigError, match="there are those over 2"):
        MeasuredCollectives(tmp_path, "gpu").all_reduce_s(256, 4)


@pytest.mark.parametrize(("gpu", "bandwidth"), [("a100", 2.0e12), ("h100", 3.35e12)])
def test_real_decode_step_is_near_what_weights_and_bandwidth_say(
    gpu: str, bandwidth: float
) -> None:
    model = load_model("llama-3.1-8b")
    step_s = operator_table_costs(real_profiles(), gpu, load_device(gpu), model).step_s(
        StepShape((), 1, 100)
    )
    reading_s = 2 * 7.5e9 / bandwidth  # all weights but the embedding
    assert reading_s < step_s < 1.6 * reading_s


def test_real_step_grows_with_tokens_and_shrinks_with_devices() -> None:
    folder, model = real_profiles(), load_model("llama-3.1-8b")
    collectives = MeasuredCollectives(folder, "h100")
    one, two = (
        operator_table_costs(
            folder, "h100", load_device("h100"), model, tp=tp, collectives=collectives
        )
        for tp in (1, 2)
    )
    times = [one.step_s(StepShape(((n, 0),))) for n in (64, 256, 1024, 4096)]
    assert times == sorted(times)
    shape = StepShape(((2048, 0),))
    assert 0.5 * one.step_s(shape) < two.step_s(shape) < 0.7 * one.step_s(shape)
