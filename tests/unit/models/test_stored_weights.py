"""Weights that stay as their file stores them: which, in which order of rows, and what for."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from paged_runs import paged_run

from evenflow.core.gguf_file import GGUFFile
from evenflow.execution.dequantise import dequantise
from evenflow.execution.kernels.quantised import PACKED_TYPES, packed_bytes
from evenflow.models.sources import ModelFiles
from evenflow.models.weights.gguf import GGUFWeights
from evenflow.models.weights.gguf_spec import spec_from_gguf
from evenflow.models.weights.open import Checkpoint, open_checkpoint
from evenflow.models.weights.shapes import linear_weights
from support.gguf_files import random_tensors, write_gguf, write_tiny

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma3", "mixtral", "qwen3moe"]
TOKEN_IDS = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5]


def open_gguf(path: Path, **options: object) -> GGUFWeights:
    file = GGUFFile(path)
    return GGUFWeights(file, spec_from_gguf(file), **options)


def open_tiny(path: Path) -> Checkpoint:
    return open_checkpoint(ModelFiles("gguf", path, "tiny"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stored_rows_are_those_of_the_expanded_tensor(tmp_path: Path, architecture: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", architecture, storage=Kind.Q4_1)
    weights = open_gguf(path, keep=PACKED_TYPES)
    spec = spec_from_gguf(GGUFFile(path))
    for name in weights.names():
        stored = weights.stored(name)
        assert (stored is not None) == (name in linear_weights(spec)), name
        if stored is not None:
            assert stored.rows.is_contiguous()
            assert (len(stored.rows), stored.in_features) == weights.shape(name)
            values = dequantise(stored.rows, stored.type)
            assert torch.equal(values, weights.tensor(name)), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_model_of_stored_weights_computes_what_that_of_expanded_ones_does(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    path = write_tiny(tmp_path / "m.gguf", architecture, storage=Kind.Q8_0, tied=tied)
    checkpoint = open_tiny(path)
    stored = paged_run(checkpoint.spec, checkpoint.weights(linear="w4a8"), "reference")
    expanded = paged_run(checkpoint.spec, checkpoint.weights(), "reference")
    assert torch.equal(stored.step({0: TOKEN_IDS})[0], expanded.step({0: TOKEN_IDS})[0])


@pytest.mark.parametrize("precision", ["w4a8", "w8a8"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_native_logits_have_the_same_bits_whatever_the_batch_and_the_chunks(
    tmp_path: Path, architecture: str, precision: str
) -> None:
    path = write_tiny(tmp_path / "m.gguf", architecture, tied=False)
    checkpoint = open_tiny(path)
    weights = checkpoint.weights(linear=precision)
    together, alone = (paged_run(checkpoint.spec, weights, "native") for _ in range(2))
    expected = alone.step({0: TOKEN_IDS})[0]
    found = [
        together.step({0: TOKEN_IDS[:4], 1: TOKEN_IDS[:1], 2: TOKEN_IDS})[0],
        together.step({1: TOKEN_IDS[2:], 0: TOKEN_IDS[4:5]})[0],
        together.step({0: TOKEN_IDS[5:]})[0],
    ]
    assert torch.equal(torch.cat(found), expected)


def test_exact_weights_are_never_as_stored(tmp_path: Path) -> None:
    checkpoint = open_tiny(write_tiny(tmp_path / "m.gguf", "llama", storage=Kind.Q8_0))
    for cache_dir in (None, tmp_path / "weights"):
        weights = checkpoint.weights(weight_cache_dir=cache_dir)
        assert not any(weights.stored(name) for name in weights.names())


def test_stored_weights_leave_no_loaded_form_behind(tmp_path: Path) -> None:
    checkpoint = open_tiny(write_tiny(tmp_path / "m.gguf", "llama", storage=Kind.Q8_0))
    checkpoint.weights(linear="w8a8", weight_cache_dir=tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_quantised_file_keeps_its_types_whatever_precision_is_asked_for(tmp_path: Path) -> None:
    tensors = random_tensors("llama")
    path = write_gguf(tmp_path / "m.gguf", "llama", tensors, storage=Kind.Q4_0)
    for precision in ("w4a8", "w8a8"):
        stored = (
            open_tiny(path).weights(linear=precision).stored("model.layers.0.mlp.up_proj.weight")
        )
        expected = gguf.quantize(tensors["blk.0.ffn_up.weight"], Kind.Q4_0)
        assert np.array_equal(stored.rows.numpy(), expected)


@pytest.mark.parametrize(("precision", "expected"), [("w4a8", "Q4_1"), ("w8a8", "Q8_0")])
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_weights_that_are_not_quantised_are_rounded(
    tmp_path: Path, precision: str, expected: str, load_format: str
) -> None:
    storage = None if load_format == "auto" else Kind.Q4_0
    checkpoint = open_tiny(write_tiny(tmp_path / "m.gguf", "llama", storage=storage))
    assert not checkpoint.is_quantised(load_format)
    weights = checkpoint.weights(linear=precision, load_format=load_format)
    assert weights.stored("model.layers.0.mlp.up_proj.weight").type.name == expected
    assert weights.stored("model.embed_tokens.weight").type.name == "Q8_0"
    assert weights.stored("model.norm.weight") is None


def test_types_without_kernels_are_expanded_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    special = {"blk.1.attn_q.weight": Kind.MXFP4, "blk.1.attn_v.weight": Kind.F16}
    path = tmp_path / "m.gguf"
    write_gguf(path, "llama", random_tensors("llama"), storage=Kind.Q8_0, special=special)
    checkpoint = open_tiny(path)
    with caplog.at_level(logging.WARNING):
        weights = checkpoint.weights(linear="w4a8")
        found = {name: weights.stored(name) for name in weights.names()}
    attention = "model.layers.1.self_attn"
    assert found[f"{attention}.q_proj.weight"] is found[f"{attention}.v_proj.weight"] is None
    assert found[f"{attention}.k_proj.weight"] is not None
    (record,) = caplog.records
    assert "types=MXFP4 " in record.getMessage()


@pytest.mark.parametrize("precision", ["exact", "w4a8", "w8a8"])
@pytest.mark.parametrize("storage", [None, Kind.Q4_1, Kind.Q5_0])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_weight_bytes_are_those_of_all_tensors_in_the_form_they_are_held_in(
    tmp_path: Path, precision: str, storage: Kind | None, tied: bool
) -> None:
    checkpoint = open_tiny(write_tiny(tmp_path / "m.gguf", "qwen2", storage=storage, tied=tied))
    weights = checkpoint.weights(linear=precision)
    held = 0
    for name in weights.names():
        stored = weights.stored(name)
        twice = tied and stored is None and name == "model.embed_tokens.weight"
        held += (
            4 * weights.tensor(name).numel() * (2 if twice else 1)
            if stored is None
            else packed_bytes(stored.type, *weights.shape(name))
        )
    assert checkpoint.weight_bytes(precision) == held


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16], ids=lambda kind: kind.name)
def test_floats_are_read_without_gguf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    tensors = random_tensors("qwen2")
    path = write_gguf(tmp_path / "m.gguf", "qwen2", tensors, storage=kind)
    expected = gguf.dequantize(gguf.quantize(tensors["token_embd.weight"], kind), kind)
    monkeypatch.setitem(sys.modules, "gguf", None)
    found = open_gguf(path).tensor("model.embed_tokens.weight").numpy()
    np.testing.assert_array_equal(found, expected)
