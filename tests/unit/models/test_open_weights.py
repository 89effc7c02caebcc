"""From model files to a description and its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from evenflow.core.errors import ModelFormatError, ModelNotFoundError
from evenflow.models.sources import ModelFiles
from evenflow.models.weights.open import open_checkpoint
from evenflow.models.weights.shapes import tensor_shapes
from support.gguf_files import random_tensors, write_gguf, write_tiny

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def write_llama(directory: Path) -> ModelFiles:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(directory)
    return ModelFiles("hf", directory, "tiny")


def test_checkpoint_opens_a_directory(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_llama(tmp_path))
    assert checkpoint.weights().names() == tensor_shapes(checkpoint.spec).keys()


def test_checkpoint_reads_end_tokens_of_the_generation_config(tmp_path: Path) -> None:
    files = write_llama(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    assert open_checkpoint(files).spec.eos_token_ids == (2, 9)


def test_checkpoint_opens_a_gguf_file(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3")
    checkpoint = open_checkpoint(ModelFiles("gguf", path, "tiny"))
    assert checkpoint.spec.architecture == "qwen3"
    assert checkpoint.weights().names() == tensor_shapes(checkpoint.spec).keys()


def test_checkpoint_tells_the_spec_of_a_directory_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    checkpoint = open_checkpoint(ModelFiles("hf", tmp_path, "tiny"))
    assert checkpoint.spec.hidden_size == LLAMA["hidden_size"]
    with pytest.raises(ModelNotFoundError, match="dummy"):
        checkpoint.weights()


@pytest.mark.parametrize("architecture", ["gemma3", "mixtral"])
def test_checkpoint_gives_the_same_tensors_with_a_cache(tmp_path: Path, architecture: str) -> None:
    files = ModelFiles("gguf", write_tiny(tmp_path / "m.gguf", architecture), "tiny")
    direct = open_checkpoint(files).weights()
    for _ in range(2):
        kept = open_checkpoint(files).weights(weight_cache_dir=tmp_path / "weights")
        assert kept.names() == direct.names()
        for name in direct.names():
            assert torch.equal(kept.tensor(name), direct.tensor(name))
    assert len(list((tmp_path / "weights").glob("*.safetensors"))) == 1


def test_checkpoint_does_not_confuse_files_of_one_name(tmp_path: Path) -> None:
    files = ModelFiles("gguf", write_tiny(tmp_path / "m.gguf", "llama"), "tiny")
    first = open_checkpoint(files).weights(weight_cache_dir=tmp_path)
    before = first.tensor("model.norm.weight").clone()
    tensors = random_tensors("llama")
    tensors["output_norm.weight"] += 1
    write_gguf(files.path, "llama", tensors)
    second = open_checkpoint(files).weights(weight_cache_dir=tmp_path)
    torch.testing.assert_close(second.tensor("model.norm.weight"), before + 1)


def test_checkpoint_makes_dummies_from_a_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    checkpoint = open_checkpoint(ModelFiles("hf", tmp_path, "tiny"))
    weights = checkpoint.weights(load_format="dummy", seed=3)
    assert weights.names() == tensor_shapes(checkpoint.spec).keys()


def test_checkpoint_names_missing_and_misshapen_tensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    save_file({"model.norm.weight": torch.ones(5)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelFormatError, match=r"12 of 12.*embed_tokens.* is missing"):
        open_checkpoint(ModelFiles("hf", tmp_path, "tiny")).weights()
    tensors = random_tensors("llama")
    tensors["blk.1.attn_k.weight"] = tensors["blk.1.attn_k.weight"][:16]
    path = write_gguf(tmp_path / "m.gguf", "llama", tensors)
    with pytest.raises(ModelFormatError, match=r"1\.self_attn\.k_proj\.weight is \(16, 64\)"):
        open_checkpoint(ModelFiles("gguf", path, "tiny")).weights()


@pytest.mark.parametrize("content", ["{", "[]"])
def test_open_checkpoint_refuses_a_config_that_is_no_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        open_checkpoint(ModelFiles("hf", tmp_path, "tiny"))
