"""The real GGUF files: headers as gguf-py reads them, weights as transformers loads them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from evenflow.config import load_config
from evenflow.core.gguf_file import GGUFFile
from evenflow.models.sources import ModelFiles, resolve
from evenflow.models.weights.open import open_checkpoint

pytestmark = pytest.mark.model


def model_file(name: str) -> Path:
    return resolve(name, cache_dir=load_config().config.paths.cache).path


@pytest.mark.parametrize("name", ["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.slow)])
def test_gguf_file_equals_reference_on_real_model(name: str) -> None:
    path = model_file(name)
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        value = ours.metadata[key]
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents(), key
    assert [
        (tensor.name, tensor.type.name, list(tensor.shape), tensor.offset, tensor.num_bytes)
        for tensor in ours.tensors.values()
    ] == [
        (t.name, t.tensor_type.name, t.shape.tolist()[::-1], t.data_offset, t.n_bytes)
        for t in theirs.tensors
    ]


@pytest.mark.parametrize(
    ("name", "model_class", "tensors"),
    [
        pytest.param(
            "smollm2",
            transformers.LlamaForCausalLM,
            ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj", "input_layernorm"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "gemma3-270m",
            transformers.Gemma3ForCausalLM,
            ["self_attn.q_proj", "self_attn.q_norm", "pre_feedforward_layernorm", "mlp.up_proj"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_checkpoint_weights_equal_transformers_on_real_model(
    name: str, model_class: type, tensors: list[str]
) -> None:
    path = model_file(name)
    weights = open_checkpoint(ModelFiles("gguf", path, name)).weights()
    reference = model_class.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    for tensor in tensors:
        full_name = f"model.layers.3.{tensor}.weight"
        assert torch.equal(weights.tensor(full_name), reference[full_name]), full_name
    for full_name in ("model.norm.weight", "model.embed_tokens.weight"):
        assert torch.equal(weights.tensor(full_name), reference[full_name]), full_name
