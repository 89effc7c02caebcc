"""Tiny random models that exist twice: in transformers, and in evenflow with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import transformers

from evenflow.core.errors import ModelFormatError
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.hf_config import spec_from_hf_config

WINDOW = 11

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def llama(**changes: object) -> transformers.PretrainedConfig:
    return transformers.LlamaConfig(**(SHAPE | changes))


def llama_rope(**rope: object) -> transformers.PretrainedConfig:
    return llama(rope_parameters={"rope_theta": 10_000.0, **rope})


CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: llama(tie_word_embeddings=True),
    "llama-biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama-linear": lambda: llama_rope(rope_type="linear", factor=3.0),
    "llama-llama3": lambda: llama_rope(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
    "llama-yarn": lambda: llama_rope(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=16
    ),
    "llama-yarn-wide": lambda: llama_rope(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=4096, beta_fast=64.0
    ),
    "mistral": lambda: transformers.MistralConfig(**SHAPE, sliding_window=WINDOW),
    # Qwen 2 has no head_dim of its own: its heads share the hidden size.
    "qwen2": lambda: transformers.Qwen2Config(
        **(SHAPE | {"hidden_size": 64}),
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **(SHAPE | {"num_hidden_layers": 4, "tie_word_embeddings": True}),
        sliding_window=WINDOW,
        layer_types=[
            "sliding_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
        ],
        query_pre_attn_scalar=24,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **SHAPE, num_local_experts=5, num_experts_per_tok=2
    ),
    "qwen3_moe": lambda: qwen3_moe(norm_topk_prob=True),
    "qwen3_moe-raw-probabilities": lambda: qwen3_moe(norm_topk_prob=False),
}


def qwen3_moe(**changes: object) -> transformers.PretrainedConfig:
    return transformers.Qwen3MoeConfig(
        **(SHAPE | {"num_hidden_layers": 3}),
        moe_intermediate_size=32,
        num_experts=6,
        num_experts_per_tok=3,
        mlp_only_layers=[1],
        **changes,
    )


@dataclass(frozen=True)
class Twin:
    """One random model: as transformers holds it, and as evenflow is given it."""

    reference: transformers.PreTrainedModel
    spec: ModelSpec
    weights: MemoryWeights

    @torch.inference_mode()
    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """Return what transformers computes for a whole prompt: (num_tokens, vocab_size)."""
        return self.reference(torch.tensor([token_ids])).logits[0]


@cache
def twin(name: str) -> Twin:
    config = CONFIGS[name]()
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    reference = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomise(reference)
    config.architectures = [type(reference).__name__]  # as in every config.json
    return Twin(
        reference=reference,
        spec=spec_from_hf_config(config.to_dict()),
        weights=MemoryWeights(hub_state_dict(reference)),
    )


@torch.no_grad()
def randomise(reference: torch.nn.Module) -> None:
    """Spread all parameters so far that a block left out, or a weight mixed up, shows."""
    for name, parameter in reference.named_parameters():
        if "norm" in name:
            parameter.add_(torch.randn_like(parameter) * 0.2)
        else:
            parameter.normal_(std=0.15)


class MemoryWeights:
    """A `WeightSource` over tensors in memory."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def tensor(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise ModelFormatError("A tensor is missing", why=f"the test model has no {name}")
        return self._tensors[name].clone()  # a model owns what it is given

    def stored(self, name: str) -> None:
        return None


def hub_state_dict(reference: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Undo the fusing and renaming of experts that transformers does while loading."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in reference.state_dict().items():
        if name.endswith(".experts.gate_up_proj"):
            prefix = name.removesuffix(".gate_up_proj")
            for expert, (gate, up) in enumerate(weight.chunk(2) for weight in tensor):
                tensors[f"{prefix}.{expert}.gate_proj.weight"] = gate
                tensors[f"{prefix}.{expert}.up_proj.weight"] = up
        elif name.endswith(".experts.down_proj"):
            prefix = name.removesuffix(".down_proj")
            for expert, down in enumerate(tensor):
                tensors[f"{prefix}.{expert}.down_proj.weight"] = down
        else:
            tensors[name] = tensor
    if reference.config.model_type == "mixtral":
        mixtral_words = {
            ".mlp.": ".block_sparse_moe.",
            ".gate_proj.": ".w1.",
            ".up_proj.": ".w3.",
            ".down_proj.": ".w2.",
        }
        for ours, theirs in mixtral_words.items():
            tensors = {name.replace(ours, theirs): tensor for name, tensor in tensors.items()}
    return tensors
