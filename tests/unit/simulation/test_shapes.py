from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from evenflow.core.errors import ConfigError
from evenflow.simulation.shapes import (
    known_devices,
    known_models,
    load_device,
    load_model,
    num_kv_blocks,
)

GIB = 2**30

# As their makers count them, with the biases and norms that a shape leaves out.
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "qwen-2.5-7b": 7_615_616_512,
    "qwen-2.5-32b": 32_763_876_352,
    "qwen-2.5-72b": 72_706_203_648,
    "qwen-3-8b": 8_190_735_360,
    "qwen-3-32b": 32_762_123_264,
    "qwen-3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v2-lite": 15_706_484_224,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", known_models())
def test_every_model_loads_under_the_name_of_its_file(name: str) -> None:
    model = load_model(name)
    assert model.name == name
    assert model.num_params == pytest.approx(PARAMETERS.get(name, model.num_params), rel=2e-3)


@pytest.mark.parametrize("name", known_devices())
def test_every_device_loads_and_names_its_sources(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert min(len(device.source), len(device.efficiency.source)) > 20
    assert device.link("pcie").bytes_per_s > 1e9


@pytest.mark.parametrize(
    ("name", "kib"), [("llama-3-8b", 128), ("qwen-2.5-32b", 256), ("deepseek-v2-lite", 30.375)]
)
def test_model_shape_knows_the_kv_bytes_of_a_token(name: str, kib: float) -> None:
    assert load_model(name).kv_bytes_per_token == kib * 1024


def test_model_shape_divides_kv_among_devices_as_far_as_there_are_heads() -> None:
    model = load_model("llama-3-8b")  # 8 key and value heads, 32 layers
    whole = model.kv_bytes_per_token
    assert model.kv_bytes_per_token_per_gpu(8, 1) == whole / 8
    assert model.kv_bytes_per_token_per_gpu(16, 1) == whole / 8
    assert model.kv_bytes_per_token_per_gpu(2, 3) == whole / 2 * 11 / 32


def test_model_shape_repeats_a_latent_vector_on_every_device() -> None:
    model = load_model("deepseek-v2-lite")
    assert model.kv_bytes_per_token_per_gpu(4, 1) == model.kv_bytes_per_token


def test_experts_touched_grow_from_those_of_one_token_to_all() -> None:
    moe = load_model("qwen-3-30b-a3b").moe
    assert moe is not None
    assert moe.expected_touched(1) == pytest.approx(8)
    assert 60 < moe.expected_touched(10) < 80
    assert moe.expected_touched(1000) == pytest.approx(128)


def test_num_kv_blocks_is_what_the_weights_leave() -> None:
    model, device = load_model("llama-3-8b"), load_device("a100")
    left = int(80 * GIB * 0.9) - 2 * model.num_params
    assert num_kv_blocks(model, device) == left // (16 * 128 * 1024)


def test_num_kv_blocks_takes_the_memory_asked_for() -> None:
    model, device = load_model("llama-3-8b"), load_device("a100")
    num_blocks = num_kv_blocks(model, device, block_size=32, kv_memory_bytes=GIB)
    assert num_blocks == GIB // (32 * 128 * 1024)
    assert num_kv_blocks(model, device, tp=2, kv_memory_bytes=GIB) == 2 * 512


def test_num_kv_blocks_says_when_the_weights_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"leaves no KV memory on 1 x a100.*131"):
        num_kv_blocks(load_model("llama-3-70b"), load_device("a100"))
    assert num_kv_blocks(load_model("llama-3-70b"), load_device("a100"), tp=4) > 0


def test_device_computes_with_the_next_wider_form() -> None:
    model = load_model("smollm2-135m")
    assert load_device("cpu").form_of(model).kv_bytes_per_token == 2 * model.kv_bytes_per_token
    assert load_device("a10").form_of(model) == model


def test_device_refuses_a_form_wider_than_it_has() -> None:
    model = load_model("smollm2-135m").model_copy(update={"dtype_bytes": 4})
    narrow = load_device("a10").model_copy(update={"flops": {2: 1e12}})
    with pytest.raises(ConfigError, match="does not compute with 4 bytes"):
        narrow.form_of(model)


def test_load_device_reads_a_file_of_ones_own(tmp_path: Path) -> None:
    text = (files("evenflow.simulation") / "devices" / "a100.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('name = "a100"', 'name = "mine"'))
    assert load_device(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("launch_s", "lunch_s", "launch_s"),
        ("bandwidth_bytes_per_s = ", "bandwidth_bytes_per_s = -", "bandwidth_bytes_per_s"),
        ("[flops]", "[flops", "cannot be read"),
    ],
)
def test_load_device_says_what_is_wrong_in_a_file(
    tmp_path: Path, old: str, new: str, why: str
) -> None:
    text = (files("evenflow.simulation") / "devices" / "a100.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=why):
        load_device(str(path))


def test_load_model_lists_what_there_is_when_the_name_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"there is no model 'llama-9'.*llama-3-8b"):
        load_model("llama-9")


def test_device_without_a_link_says_which_it_has() -> None:
    with pytest.raises(ConfigError, match=r"no link 'nvlink'.*pcie"):
        load_device("a10").link("nvlink")
