"""Safetensors directories: single files, shards, prefixes, types, damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evenflow.core.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from evenflow.models.weights.safetensors import INDEX_FILE, SafetensorsWeights, weight_files

MAPS = Path("/proc/self/maps")


def write_shards(directory: Path) -> dict[str, torch.Tensor]:
    tensors = {f"model.t{i}.weight": torch.full((2, 3), float(i)) for i in range(4)}
    weight_map = {}
    for number in range(2):
        shard = f"model-{number + 1:05}-of-00002.safetensors"
        part = dict(list(tensors.items())[2 * number : 2 * number + 2])
        save_file(part, directory / shard)
        weight_map.update(dict.fromkeys(part, shard))
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def test_safetensors_weights_read_a_single_file(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    weights = SafetensorsWeights(weight_files(tmp_path))
    assert weights.names() == {"lm_head.weight"}
    assert weights.shape("lm_head.weight") == (2, 2)
    assert torch.equal(weights.tensor("lm_head.weight"), torch.ones(2, 2))


def test_safetensors_weights_read_shards(tmp_path: Path) -> None:
    tensors = write_shards(tmp_path)
    weights = SafetensorsWeights(weight_files(tmp_path))
    assert weights.names() == tensors.keys()
    for name, values in tensors.items():
        assert torch.equal(weights.tensor(name), values)


def test_weight_files_name_missing_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"1 of 2.*model-00002-of-00002"):
        weight_files(tmp_path)


def test_weight_files_refuse_a_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}']
)
def test_weight_files_refuse_a_damaged_index(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX_FILE).write_text(index)
    with pytest.raises(ModelFormatError):
        weight_files(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_safetensors_weights_are_fp32_whatever_is_stored(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    values = torch.tensor([[0.5, -2.0]], dtype=dtype)
    save_file({"a": values}, tmp_path / "model.safetensors")
    ours = SafetensorsWeights(weight_files(tmp_path)).tensor("a")
    assert ours.dtype == torch.float32
    assert torch.equal(ours, values.float())


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_safetensors_weights_refuse_quantised_types(
    tmp_path: Path, dtype: torch.dtype, name: str
) -> None:
    save_file({"a": torch.ones(4).to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=name):
        SafetensorsWeights(weight_files(tmp_path)).tensor("a")


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.norm.weight", "model.norm.weight"),
    ],
)
def test_safetensors_weights_find_the_text_part(tmp_path: Path, stored: str, name: str) -> None:
    save_file({stored: torch.ones(3)}, tmp_path / "model.safetensors")
    assert torch.equal(SafetensorsWeights(weight_files(tmp_path)).tensor(name), torch.ones(3))


def test_safetensors_weights_refuse_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelFormatError, match="not a sound safetensors file"):
        SafetensorsWeights([path])


def test_safetensors_weights_name_the_missing_tensor(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelFormatError, match="'b'"):
        SafetensorsWeights(weight_files(tmp_path)).tensor("b")


@pytest.mark.skipif(not MAPS.exists(), reason="reads what Linux says of a process")
def test_safetensors_weights_keep_a_file_mapped_only_while_a_tensor_lives(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(5), "b": torch.ones(5)}, path)
    weights = SafetensorsWeights([path])
    values = weights.tensor("b")
    assert str(path) in MAPS.read_text()
    del values
    assert str(path) not in MAPS.read_text()


def test_safetensors_weights_leave_the_file_alone_when_a_tensor_is_written_to(
    tmp_path: Path,
) -> None:
    save_file({"a": torch.ones(5)}, tmp_path / "model.safetensors")
    weights = SafetensorsWeights(weight_files(tmp_path))
    weights.tensor("a").zero_()
    assert torch.equal(weights.tensor("a"), torch.ones(5))


@pytest.mark.parametrize("kept_bytes", [None, 8])
def test_safetensors_weights_notice_that_a_file_has_gone_or_shrunk(
    tmp_path: Path, kept_bytes: int | None
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(64)}, path)
    weights = SafetensorsWeights([path])
    if kept_bytes is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ModelFormatError, match="has changed"):
        weights.tensor("a")
