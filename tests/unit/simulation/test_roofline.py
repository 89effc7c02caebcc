from __future__ import annotations

from typing import Any

import pytest

from evenflow.core.errors import ConfigError
from evenflow.execution.costs import StepShape
from evenflow.simulation.roofline import RooflineCosts
from evenflow.simulation.shapes import DeviceShape, Efficiency, LinkShape, ModelShape, load_model
from support.step_shapes import chunk, decodes

MODEL = ModelShape(
    name="tiny",
    num_layers=4,
    hidden_size=64,
    intermediate_size=256,
    num_heads=8,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=512,
    max_model_len=4096,
    source="a test",
)
ALL = Efficiency(matmul=1, attention=1, bandwidth=1, kv_bandwidth=1, source="a test")


def device(**changes: Any) -> DeviceShape:
    values: dict[str, Any] = {
        "name": "box",
        "description": "a box",
        "memory_bytes": 2**30,
        "flops": {2: 1e12},
        "bandwidth_bytes_per_s": 1e9,
        "launch_s": 0.0,
        "efficiency": ALL,
        "source": "a test",
        "links": {"nvlink": LinkShape(bytes_per_s=1e8, latency_s=1e-3)},
    }
    return DeviceShape(**values | changes)


def test_roofline_of_a_decode_reads_all_weights_and_the_kv() -> None:
    costs = RooflineCosts(MODEL, device())
    weights = MODEL.num_params - MODEL.vocab_size * MODEL.hidden_size - 2 * 4 * 64
    step = costs.step_s(decodes(1, 1000))
    assert step == pytest.approx((2 * weights + 1000 * MODEL.kv_bytes_per_token) / 1e9, rel=0.05)
    more = costs.step_s(decodes(1, 3000)) - step
    assert more == pytest.approx(2000 * MODEL.kv_bytes_per_token / 1e9)


def test_roofline_of_a_long_prompt_multiplies_by_all_weights_and_attends_to_all_pairs() -> None:
    fast_memory = device(bandwidth_bytes_per_s=1e18)
    costs = RooflineCosts(MODEL, fast_memory)
    layers = MODEL.num_params - 2 * MODEL.vocab_size * MODEL.hidden_size - 2 * 4 * 64
    pairs = 1000 * 1001 // 2 + 1000 * 500
    flops = 2 * layers * 1000 + 4 * pairs * 64 * 4 + 2 * 64 * 512
    assert costs.step_s(chunk(1000, 500)) == pytest.approx(flops / 1e12)


def test_roofline_pays_for_every_launch() -> None:
    free, paid = RooflineCosts(MODEL, device()), RooflineCosts(MODEL, device(launch_s=1e-3))
    shape = StepShape(((8, 0),), 4, 40)
    # A layer: four products, five kernels in between, two attentions of three; and the head.
    assert paid.step_s(shape) - free.step_s(shape) == pytest.approx((4 * 15 + 1) * 1e-3)


def test_roofline_of_tensor_parallel_devices_divides_the_work_and_adds_two_sums_a_layer() -> None:
    shape = decodes(4, 500)
    one = RooflineCosts(MODEL, device()).step_s(shape)
    free_link = {"nvlink": LinkShape(bytes_per_s=1e30)}
    two = RooflineCosts(MODEL, device(links=free_link), tp=2).step_s(shape)
    assert one / 2 < two < 0.6 * one
    linked = RooflineCosts(MODEL, device(), tp=2).step_s(shape)
    one_sum = 1e-3 + 4 * 64 * 2 / 1e8  # half of the ring's two rounds, twice
    assert linked - two == pytest.approx(4 * 2 * one_sum)


def test_roofline_takes_collectives_from_elsewhere() -> None:
    class Slow:
        description = "a test"

        def all_reduce_s(self, num_bytes: int, num_gpus: int) -> float:
            assert (num_bytes, num_gpus) == (3 * 64 * 2, 4)
            return 1.0

    costs = RooflineCosts(MODEL, device(), tp=4, collectives=Slow())
    assert 8 < costs.step_s(decodes(3, 10)) < 8.1


def test_roofline_of_a_pipeline_with_one_request_takes_all_stages_in_turn() -> None:
    free_link = {"nvlink": LinkShape(bytes_per_s=1e30)}
    one = RooflineCosts(MODEL, device()).step_s(decodes(1, 100))
    two = RooflineCosts(MODEL, device(links=free_link), pp=2).step_s(decodes(1, 100))
    assert two == pytest.approx(one)


def test_roofline_of_a_full_pipeline_computes_pp_times_as_much_in_the_time() -> None:
    compute_bound = device(
        bandwidth_bytes_per_s=1e18, links={"nvlink": LinkShape(bytes_per_s=1e30)}
    )
    shape = StepShape(((512, 0),) * 4)
    one = RooflineCosts(MODEL, compute_bound).step_s(shape)
    four = RooflineCosts(MODEL, compute_bound, pp=4).step_s(shape)
    assert four == pytest.approx(one / 4, rel=0.02)


def test_roofline_of_experts_reads_those_that_are_touched() -> None:
    model = load_model("qwen-3-30b-a3b")
    costs = RooflineCosts(model, device(flops={2: 1e18}, bandwidth_bytes_per_s=1e12))
    one, eight, many = (costs.step_s(decodes(batch, 1)) for batch in (1, 8, 512))
    active = 3.3e9 - 2048 * 151_936  # less the embedding, of which one row is read
    assert one == pytest.approx(2 * active / 1e12, rel=0.05)
    assert 3 * one < eight < 8 * one
    everything = 2 * (model.num_params - 2048 * 151_936) / 1e12
    assert everything < many < 1.25 * everything


def test_roofline_of_latent_attention_reads_the_compressed_vectors() -> None:
    model = load_model("deepseek-v2-lite")
    costs = RooflineCosts(model, device(flops={2: 1e18}))
    more = costs.step_s(decodes(1, 3000)) - costs.step_s(decodes(1, 1000))
    assert more == pytest.approx(2000 * 31_104 / 1e9)


def test_roofline_charges_nothing_for_nothing_and_the_host_once() -> None:
    costs = RooflineCosts(MODEL, device(), overhead_s=0.5)
    assert costs.step_s(StepShape()) == 0.0
    without = RooflineCosts(MODEL, device()).step_s(chunk(5))
    assert costs.step_s(chunk(5)) == pytest.approx(without + 0.5)


@pytest.mark.parametrize("parallel", [{"tp": 3}, {"pp": 5}])
def test_roofline_refuses_a_division_that_cannot_be(parallel: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="cannot be divided"):
        RooflineCosts(MODEL, device(), **parallel)


def test_roofline_says_where_its_figures_come_from() -> None:
    description = RooflineCosts(MODEL, device(), tp=2).description
    assert "tiny on a box" in description
    assert "tp 2" in description
    assert "a test" in description
