"""Random weights: the right tensors, the same every time."""

from __future__ import annotations

import pytest
import torch
import transformers
from test_hf_config import CONFIG_CLASSES, SHAPE

from evenflow.core.errors import ModelFormatError
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.dummy import DummyWeights
from evenflow.models.weights.hf_config import spec_from_hf_config
from evenflow.models.weights.shapes import tensor_shapes


def describe(architecture: str) -> tuple[transformers.PretrainedConfig, ModelSpec]:
    small_moe = {"num_local_experts": 3, "num_experts_per_tok": 2}
    config = CONFIG_CLASSES[architecture](
        architectures=[architecture],
        **SHAPE,
        **(small_moe if "Mixtral" in architecture or "Moe" in architecture else {}),
    )
    return config, spec_from_hf_config(config.to_dict())


@pytest.mark.parametrize("architecture", CONFIG_CLASSES)
def test_tensor_shapes_are_those_transformers_saves(
    architecture: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from safetensors.torch import load_file

    config, spec = describe(architecture)
    directory = tmp_path_factory.mktemp("model")
    getattr(transformers, architecture)(config).save_pretrained(directory)
    saved = {
        name: tuple(values.shape)
        for name, values in load_file(directory / "model.safetensors").items()
    }
    assert tensor_shapes(spec) == saved


def test_dummy_weights_depend_on_seed_and_name_alone() -> None:
    _, spec = describe("LlamaForCausalLM")
    first, again, other = DummyWeights(spec, 1), DummyWeights(spec, 1), DummyWeights(spec, 2)
    q, k = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qk")
    again.tensor(k)
    assert torch.equal(first.tensor(q), again.tensor(q))
    assert not torch.equal(first.tensor(q), other.tensor(q))
    assert not torch.equal(first.tensor(q)[: len(first.tensor(k))], first.tensor(k))


@pytest.mark.parametrize(
    ("architecture", "centre"), [("LlamaForCausalLM", 1.0), ("Gemma3ForCausalLM", 0.0)]
)
def test_dummy_weights_leave_norms_near_identity(architecture: str, centre: float) -> None:
    _, spec = describe(architecture)
    assert DummyWeights(spec, 0).tensor("model.norm.weight").mean() == pytest.approx(
        centre, abs=0.05
    )


def test_dummy_weights_name_the_missing_tensor() -> None:
    _, spec = describe("Gemma3ForCausalLM")
    with pytest.raises(ModelFormatError, match="lm_head"):
        DummyWeights(spec, 0).tensor("lm_head.weight")
