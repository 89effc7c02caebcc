"""GGUF tensors under Hugging Face names, dequantised, with llama.cpp's changes undone."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from evenflow.core.errors import ModelFormatError, UnsupportedModelError
from evenflow.core.gguf_file import GGUFFile
from evenflow.models.weights.gguf import GGUFWeights
from evenflow.models.weights.gguf_spec import spec_from_gguf
from evenflow.models.weights.shapes import tensor_shapes
from support.gguf_files import (
    EXPERTS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    random_tensors,
    write_gguf,
    write_tiny,
)

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma3", "mixtral", "qwen3moe"]


def open_gguf(path: Path) -> GGUFWeights:
    file = GGUFFile(path)
    return GGUFWeights(file, spec_from_gguf(file))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gguf_weights_have_the_tensors_of_the_spec(tmp_path: Path, architecture: str) -> None:
    file = GGUFFile(write_tiny(tmp_path / "m.gguf", architecture))
    spec = spec_from_gguf(file)
    weights = GGUFWeights(file, spec)
    found = {name: tuple(weights.tensor(name).shape) for name in weights.names()}
    assert found == tensor_shapes(spec)
    assert found == {name: weights.shape(name) for name in weights.names()}


def llama_cpp_permute(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder rows as llama.cpp's converter does, row by row."""
    head_dim = len(values) // num_heads
    order = [
        head * head_dim + half * head_dim // 2 + pair
        for head in range(num_heads)
        for pair in range(head_dim // 2)
        for half in range(2)
    ]
    return values[order]


@pytest.mark.parametrize(("stem", "num_heads"), [("q", HEADS), ("k", KV_HEADS)])
def test_gguf_weights_restore_row_order_of_llama(tmp_path: Path, stem: str, num_heads: int) -> None:
    rows = np.random.default_rng(0).standard_normal((num_heads * HEAD_DIM, HIDDEN), np.float32)
    tensors = random_tensors("llama")
    tensors[f"blk.1.attn_{stem}.weight"] = llama_cpp_permute(rows, num_heads)
    weights = open_gguf(write_gguf(tmp_path / "m.gguf", "llama", tensors))
    restored = weights.tensor(f"model.layers.1.self_attn.{stem}_proj.weight")
    assert torch.equal(restored, torch.from_numpy(rows))


def test_gguf_weights_keep_row_order_of_qwen(tmp_path: Path) -> None:
    weights = open_gguf(write_tiny(tmp_path / "m.gguf", "qwen2"))
    stored = random_tensors("qwen2")["blk.0.attn_q.weight"]
    restored = weights.tensor("model.layers.0.self_attn.q_proj.weight")
    assert torch.equal(restored, torch.from_numpy(stored))


def test_gguf_weights_take_one_off_norms_of_gemma3(tmp_path: Path) -> None:
    weights = open_gguf(write_tiny(tmp_path / "m.gguf", "gemma3"))
    stored = random_tensors("gemma3")
    for ours, theirs in {
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.self_attn.k_norm.weight": "blk.0.attn_k_norm.weight",
        "model.layers.0.pre_feedforward_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.post_attention_norm.weight",
    }.items():
        assert torch.equal(weights.tensor(ours), torch.from_numpy(stored[theirs]) - 1)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("mixtral", "block_sparse_moe.experts.{}.w2.weight"),
        ("qwen3moe", "mlp.experts.{}.down_proj.weight"),
    ],
)
def test_gguf_weights_split_stacked_experts(tmp_path: Path, architecture: str, name: str) -> None:
    weights = open_gguf(write_tiny(tmp_path / "m.gguf", architecture))
    stacked = random_tensors(architecture)["blk.1.ffn_down_exps.weight"]
    for expert in range(EXPERTS):
        ours = weights.tensor(f"model.layers.1.{name.format(expert)}")
        assert torch.equal(ours, torch.from_numpy(stacked[expert]))


def dequantisable() -> list[Kind]:
    """Return every type that the installed gguf dequantises."""
    kinds = []
    for kind, (_, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
        except NotImplementedError:
            continue
        kinds.append(kind)
    return kinds


@pytest.mark.filterwarnings("ignore:invalid value")  # random bytes hold infinite scales
@pytest.mark.parametrize("kind", dequantisable(), ids=lambda kind: kind.name)
def test_gguf_weights_dequantise_like_the_reference(tmp_path: Path, kind: Kind) -> None:
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    # Random bytes are valid blocks of every quantised type; floats are made from numbers.
    rng = np.random.default_rng(3)
    values = rng.standard_normal((8, 2 * block_size), np.float32)
    try:
        stored = gguf.quantize(values, kind)
    except NotImplementedError:
        stored = rng.integers(0, 256, (8, 2 * block_bytes), np.uint8)
    path = tmp_path / "m.gguf"
    tensors = random_tensors("qwen2")
    del tensors["token_embd.weight"]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor("token_embd.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    spec = spec_from_gguf(GGUFFile(write_tiny(tmp_path / "spec.gguf", "qwen2")))
    ours = GGUFWeights(GGUFFile(path), spec).tensor("model.embed_tokens.weight").numpy()
    np.testing.assert_array_equal(ours, gguf.dequantize(stored, kind).reshape(8, -1))


def test_gguf_weights_refuse_types_that_are_not_dequantised(tmp_path: Path) -> None:
    tensors: dict[str, np.ndarray] = random_tensors("llama")
    tensors["output_norm.weight"] = np.zeros(HIDDEN, np.int8)
    weights = open_gguf(write_gguf(tmp_path / "m.gguf", "llama", tensors))
    with pytest.raises(UnsupportedModelError, match="I8"):
        weights.tensor("model.norm.weight")


def test_gguf_weights_refuse_tensors_without_a_place(tmp_path: Path) -> None:
    tensors = {**random_tensors("llama"), "blk.0.attn_q_norm_2.weight": np.ones(4, np.float32)}
    with pytest.raises(UnsupportedModelError, match="attn_q_norm_2"):
        open_gguf(write_gguf(tmp_path / "m.gguf", "llama", tensors))


def test_gguf_weights_name_the_missing_tensor(tmp_path: Path) -> None:
    weights = open_gguf(write_tiny(tmp_path / "m.gguf", "llama"))
    with pytest.raises(ModelFormatError, match="lm_head"):
        weights.tensor("lm_head.weight")
