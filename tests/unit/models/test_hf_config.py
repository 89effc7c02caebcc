"""Model descriptions read from config.json, against the objects of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from evenflow.core.errors import ModelFormatError, UnsupportedModelError
from evenflow.models.spec import ModelSpec, MoeSpec, RopeScaling
from evenflow.models.weights.hf_config import spec_from_hf_config

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

CONFIG_CLASSES = {
    "LlamaForCausalLM": transformers.LlamaConfig,
    "MistralForCausalLM": transformers.MistralConfig,
    "Qwen2ForCausalLM": transformers.Qwen2Config,
    "Qwen3ForCausalLM": transformers.Qwen3Config,
    "Gemma3ForCausalLM": transformers.Gemma3TextConfig,
    "MixtralForCausalLM": transformers.MixtralConfig,
    "Qwen3MoeForCausalLM": transformers.Qwen3MoeConfig,
}


def spec(architecture: str, **keys: Any) -> ModelSpec:
    """Describe what transformers would write for these keys."""
    config = CONFIG_CLASSES[architecture](architectures=[architecture], **SHAPE, **keys)
    return spec_from_hf_config(config.to_dict())


def hub_spec(architecture: str, **keys: Any) -> ModelSpec:
    """Describe a config.json that holds these keys and nothing else."""
    return spec_from_hf_config({"architectures": [architecture], **SHAPE, **keys})


@pytest.mark.parametrize("architecture", CONFIG_CLASSES)
def test_spec_from_hf_config_has_the_defaults_of_transformers(architecture: str) -> None:
    assert hub_spec(architecture) == spec(architecture)


@pytest.mark.parametrize("architecture", CONFIG_CLASSES)
def test_spec_from_hf_config_has_the_shapes_of_transformers(architecture: str) -> None:
    config = CONFIG_CLASSES[architecture](**SHAPE)
    ours = spec(architecture)
    assert ours.num_layers == config.num_hidden_layers
    assert (ours.hidden_size, ours.vocab_size) == (config.hidden_size, config.vocab_size)
    assert (ours.num_heads, ours.num_kv_heads) == (4, 2)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // 4
    assert ours.head_dim == head_dim
    assert ours.rms_norm_eps == config.rms_norm_eps
    assert ours.max_position_embeddings == config.max_position_embeddings
    assert ours.tie_word_embeddings == config.tie_word_embeddings
    assert ours.bos_token_id == config.bos_token_id


def test_spec_from_hf_config_reads_rope_of_both_generations() -> None:
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 2.0,
        "original_max_position_embeddings": 64,
    }
    old = hub_spec(
        "LlamaForCausalLM", rope_theta=5e5, rope_scaling={"rope_type": "llama3", **llama3}
    )
    new = spec(
        "LlamaForCausalLM", rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **llama3}
    )
    assert old == new
    assert old.rope_theta == 5e5
    assert old.rope_scaling == RopeScaling(
        kind="llama3", factor=8.0, high_freq_factor=2.0, original_max_position_embeddings=64
    )


def test_spec_from_hf_config_reads_yarn_under_its_old_key() -> None:
    ours = hub_spec(
        "Qwen2ForCausalLM", rope_scaling={"type": "yarn", "factor": 4.0}, max_position_embeddings=99
    )
    assert ours.rope_scaling == RopeScaling(
        kind="yarn", factor=4.0, original_max_position_embeddings=99
    )


def test_spec_from_hf_config_scales_only_full_layers_of_gemma3() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = hub_spec("Gemma3ForCausalLM", rope_scaling=scaling, rope_local_base_freq=5e3)
    new = spec(
        "Gemma3ForCausalLM",
        rope_parameters={
            "full_attention": {"rope_theta": 1e6, **scaling},
            "sliding_attention": {"rope_theta": 5e3, "rope_type": "default"},
        },
    )
    assert old == new
    assert (old.rope_theta, old.local_rope_theta) == (1e6, 5e3)
    assert old.rope_scaling is not None
    assert old.rope_scaling.factor == 8.0


def test_spec_from_hf_config_reads_constants_of_gemma3() -> None:
    ours = spec("Gemma3ForCausalLM", query_pre_attn_scalar=64, sliding_window=9, layer_types=None)
    assert ours.attention_scale == 64**-0.5
    assert ours.activation == "gelu_tanh"
    assert ours.layer_windows == (9, 9, 9, 9)
    assert hub_spec(
        "Gemma3ForCausalLM", sliding_window=9, sliding_window_pattern=2
    ).layer_windows == (9, None, 9, None)


def test_spec_from_hf_config_reads_text_part_of_gemma3() -> None:
    # Hub checkpoints leave most of the text part to the defaults.
    ours = spec_from_hf_config(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "eos_token_id": [1, 106],
            "text_config": {"hidden_size": 2560, "num_hidden_layers": 6, "sliding_window": 1024},
            "vision_config": {"hidden_size": 1},
        }
    )
    assert (ours.hidden_size, ours.num_heads, ours.num_kv_heads, ours.head_dim) == (2560, 8, 4, 256)
    assert (ours.vocab_size, ours.tie_word_embeddings) == (262_208, True)
    assert ours.layer_windows == (1024, 1024, 1024, 1024, 1024, None)
    assert ours.eos_token_ids == (1, 106)


def test_spec_from_hf_config_reads_windows() -> None:
    assert spec("MistralForCausalLM", sliding_window=16).layer_windows == (16,) * 4
    assert spec("MistralForCausalLM", sliding_window=None).layer_windows == ()
    qwen = {"sliding_window": 16, "max_window_layers": 3}
    assert spec("Qwen2ForCausalLM", **qwen).layer_windows == ()
    assert hub_spec("Qwen2ForCausalLM", use_sliding_window=True, **qwen).layer_windows == (
        None,
        None,
        None,
        16,
    )
    assert spec("Qwen3ForCausalLM", use_sliding_window=True, **qwen).layer_windows[2:] == (None, 16)


def test_spec_from_hf_config_reads_biases() -> None:
    qwen2 = spec("Qwen2ForCausalLM")
    assert (qwen2.attention_bias, qwen2.attention_output_bias) == (True, False)
    llama = spec("LlamaForCausalLM", attention_bias=True, mlp_bias=True)
    assert (llama.attention_bias, llama.attention_output_bias, llama.mlp_bias) == (True,) * 3


def test_spec_from_hf_config_reads_experts() -> None:
    assert spec("MixtralForCausalLM", num_local_experts=4).moe == MoeSpec(
        num_experts=4, num_experts_per_tok=2, intermediate_size=48, norm_topk_prob=True
    )
    keys = {"num_experts": 6, "moe_intermediate_size": 16, "decoder_sparse_step": 2}
    expected = MoeSpec(
        num_experts=6,
        num_experts_per_tok=8,
        intermediate_size=16,
        norm_topk_prob=False,
        dense_layers=frozenset({0, 2, 3}),
    )
    assert spec("Qwen3MoeForCausalLM", mlp_only_layers=[3], **keys).moe == expected
    assert hub_spec("Qwen3MoeForCausalLM", mlp_only_layers=[3], **keys).moe == expected


def test_spec_from_hf_config_unites_end_tokens_of_both_files() -> None:
    config = {"architectures": ["LlamaForCausalLM"], **SHAPE, "eos_token_id": 5}
    assert spec_from_hf_config(config, {"eos_token_id": [9, 7]}).eos_token_ids == (5, 7, 9)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_act": "relu"}, "relu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "mscale"),
        ({"partial_rotary_factor": 0.5}, "part of each head"),
    ],
)
def test_spec_from_hf_config_refuses_what_it_would_compute_wrongly(
    keys: dict[str, Any], why: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=why):
        hub_spec("LlamaForCausalLM", **keys)


def test_spec_from_hf_config_lists_architectures_when_unknown() -> None:
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel.*LlamaForCausalLM"):
        spec_from_hf_config({"architectures": ["GPT2LMHeadModel"]})


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["LlamaForCausalLM"], **SHAPE, "hidden_size": "wide"},
        {"architectures": ["LlamaForCausalLM"], **SHAPE, "rope_scaling": [1]},
        {"architectures": ["LlamaForCausalLM"], **SHAPE, "num_attention_heads": 0},
        {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": None},
        {"architectures": 5},
    ],
)
def test_spec_from_hf_config_refuses_malformed_configs(config: dict[str, Any]) -> None:
    with pytest.raises(ModelFormatError):
        spec_from_hf_config(config)
