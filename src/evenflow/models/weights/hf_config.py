"""What a Hugging Face `config.json` says about its model, as a `ModelSpec`.

Configurations of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) are read.
Keys that a configuration leaves out have the default of its own class in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from evenflow.core.errors import ModelFormatError, UnsupportedModelError
from evenflow.execution.ops import Activation
from evenflow.models.spec import Architecture, ModelSpec, MoeSpec, RopeScaling

Config = Mapping[str, Any]


@dataclass(slots=True, frozen=True)
class _Family:
    architecture: Architecture
    defaults: Config


_COMMON: Config = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "bos_token_id": None,
    "eos_token_id": None,
    "sliding_window": None,
}
_LLAMA: Config = {**_COMMON, "bos_token_id": 1, "eos_token_id": 2}
_QWEN: Config = {
    **_COMMON,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
_GEMMA3: Config = {
    **_COMMON,
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "bos_token_id": 2,
    "eos_token_id": 1,
}

_FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family("llama", _LLAMA),
    "MistralForCausalLM": _Family(
        "llama", {**_LLAMA, "max_position_embeddings": 131_072, "sliding_window": 4096}
    ),
    "Qwen2ForCausalLM": _Family("qwen2", {**_QWEN, "attention_bias": True}),
    "Qwen3ForCausalLM": _Family("qwen3", {**_QWEN, "head_dim": 128}),
    "Gemma3ForCausalLM": _Family("gemma3", _GEMMA3),
    "Gemma3ForConditionalGeneration": _Family("gemma3", _GEMMA3),
    "MixtralForCausalLM": _Family(
        "mixtral",
        {
            **_LLAMA,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "Qwen3MoeForCausalLM": _Family(
        "qwen3_moe",
        {
            **_QWEN,
            "decoder_sparse_step": 1,
            "mlp_only_layers": (),
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
    ),
}

_ACTIVATIONS: Mapping[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# Keys that a multimodal model may keep outside its text part.
_OUTER_KEYS = ("eos_token_id", "bos_token_id", "quantization_config", "tie_word_embeddings")

# Features that evenflow does not have, with the values that turn them off.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (None, False),
}
_ROPE_KEYS: Mapping[str, frozenset[str]] = {
    "linear": frozenset({"factor"}),
    "llama3": frozenset({
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    }),
    "yarn": frozenset({
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor",
    }),
}  # fmt: skip
_ROPE_KEYS_OF_ALL = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})


def spec_from_hf_config(config: Config, generation_config: Config | None = None) -> ModelSpec:
    """Describe the model of a `config.json`.

    Args:
        config: the parsed file.
        generation_config: the parsed `generation_config.json`; its end tokens count too.

    Raises:
        UnsupportedModelError: evenflow does not have the architecture, or a feature of it.
        ModelFormatError: a necessary key is missing or of the wrong kind.
    """
    try:
        return _spec(config, generation_config or {})
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ModelFormatError(
            "the config.json of this model is incomplete or malformed",
            why=f"{type(error).__name__}: {error}",
            fix="fetch the model again",
        ) from error


def _spec(config: Config, generation_config: Config) -> ModelSpec:
    name = next(iter(config.get("architectures") or ("unnamed",)))
    if name not in _FAMILIES:
        raise UnsupportedModelError(
            f"models of architecture {name} are not supported",
            fix=f"use one of {', '.join(_FAMILIES)}",
        )
    outer = {key: config[key] for key in _OUTER_KEYS if key in config}
    text = {**outer, **config["text_config"]} if "text_config" in config else config
    return _Reader(_FAMILIES[name], text).spec((text, config, generation_config))


class _Reader:
    def __init__(self, family: _Family, config: Config) -> None:
        self.architecture = family.architecture
        self.given = config
        self.config: Config = {**family.defaults, **config}

    def spec(self, end_sources: tuple[Config, ...]) -> ModelSpec:
        config = self.config
        self.refuse_unsupported()
        rope = self.rope_parameters("full_attention")
        gemma = self.architecture == "gemma3"
        return ModelSpec(
            architecture=self.architecture,
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_layers=self.num_layers,
            num_heads=int(config["num_attention_heads"]),
            num_kv_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
            head_dim=int(
                config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
            ),
            rms_norm_eps=float(config["rms_norm_eps"]),
            rope_theta=float(rope.get("rope_theta", config["rope_theta"])),
            rope_scaling=self.rope_scaling(rope),
            local_rope_theta=self.local_rope_theta() if gemma else None,
            max_position_embeddings=int(config["max_position_embeddings"]),
            tie_word_embeddings=bool(config["tie_word_embeddings"]),
            attention_bias=bool(config["attention_bias"]),
            # Qwen 2 biases its inputs only; the flag of the others covers all four projections.
            attention_output_bias=bool(config["attention_bias"]) and self.architecture != "qwen2",
            mlp_bias=bool(config["mlp_bias"]),
            activation=self.activation(),
            layer_windows=self.layer_windows(),
            attention_scale=float(config["query_pre_attn_scalar"]) ** -0.5 if gemma else None,
            moe=self.moe(),
            bos_token_id=config["bos_token_id"],
            eos_token_ids=_end_tokens(end_sources) or _end_tokens((config,)),
        )

    @property
    def num_layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    def refuse_unsupported(self) -> None:
        for key, harmless in _UNSUPPORTED.items():
            if self.config.get(key) not in harmless:
                raise UnsupportedModelError(
                    f"the model uses {key}",
                    why=f"its value is {self.config[key]!r}, which evenflow cannot follow",
                    fix="use an unquantised checkpoint, or a GGUF file"
                    if key == "quantization_config"
                    else "",
                )

    def activation(self) -> Activation:
        key = "hidden_activation" if self.architecture == "gemma3" else "hidden_act"
        name = self.config[key]
        if name not in _ACTIVATIONS:
            raise UnsupportedModelError(
                f"the activation {name!r} is not supported",
                fix=f"use one of {', '.join(_ACTIVATIONS)}",
            )
        return _ACTIVATIONS[name]

    def layer_windows(self) -> tuple[int | None, ...]:
        config = self.config
        window = config["sliding_window"] if config.get("use_sliding_window", True) else None
        if window is None:
            return ()
        return tuple(int(window) if sliding else None for sliding in self.sliding_layers())

    def sliding_layers(self) -> list[bool]:
        config, layers = self.config, range(self.num_layers)
        if config.get("layer_types"):
            return [config["layer_types"][layer] == "sliding_attention" for layer in layers]
        if self.architecture == "gemma3":
            period = config.get("_sliding_window_pattern", config["sliding_window_pattern"])
            return [(layer + 1) % period != 0 for layer in layers]
        if self.architecture in ("qwen2", "qwen3"):
            return [layer >= config["max_window_layers"] for layer in layers]
        return [True for _ in layers]

    def rope_parameters(self, layer_type: str) -> Config:
        """Return the rotary parameters of one layer type, whichever way they are written."""
        parameters = self.given.get("rope_parameters") or self.given.get("rope_scaling") or {}
        nested = parameters.get(layer_type)
        return cast("Config", parameters if nested is None else nested)

    def local_rope_theta(self) -> float:
        if "sliding_attention" not in (self.given.get("rope_parameters") or {}):
            return float(self.config["rope_local_base_freq"])
        local = self.rope_parameters("sliding_attention")
        if local.get("rope_type", "default") != "default":
            raise UnsupportedModelError("the model scales the rotary embedding of its windows")
        return float(local["rope_theta"])

    def rope_scaling(self, rope: Config) -> RopeScaling | None:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if (
            float(self.config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1)))
            != 1
        ):
            raise UnsupportedModelError("the model rotates only a part of each head")
        if kind == "default":
            return None
        parameters = {key: value for key, value in rope.items() if value is not None}
        unknown = parameters.keys() - _ROPE_KEYS.get(kind, frozenset()) - _ROPE_KEYS_OF_ALL
        if kind not in _ROPE_KEYS or unknown:
            raise UnsupportedModelError(
                f"the model scales its rotary embedding by {kind!r}",
                why=f"evenflow does not know {', '.join(sorted(unknown)) or 'this method'}",
                fix="linear, llama3 and yarn scaling are supported",
            )

        def number(key: str, default: float) -> float:
            return float(parameters.get(key, default))

        original = number(
            "original_max_position_embeddings", self.config["max_position_embeddings"]
        )
        return RopeScaling(
            kind=kind,
            factor=float(parameters["factor"]),
            low_freq_factor=number("low_freq_factor", 1.0),
            high_freq_factor=number("high_freq_factor", 4.0),
            original_max_position_embeddings=int(original),
            beta_fast=number("beta_fast", 32.0),
            beta_slow=number("beta_slow", 1.0),
            attention_factor=parameters.get("attention_factor"),
        )

    def moe(self) -> MoeSpec | None:
        config = self.config
        if self.architecture == "mixtral":
            return MoeSpec(
                num_experts=int(config["num_local_experts"]),
                num_experts_per_tok=int(config["num_experts_per_tok"]),
                intermediate_size=int(config["intermediate_size"]),
                norm_topk_prob=True,
            )
        if self.architecture != "qwen3_moe":
            return None
        step = int(config["decoder_sparse_step"])
        num_experts = int(config.get("num_local_experts", config["num_experts"]))
        dense_layers = set(config["mlp_only_layers"] or ())
        dense_layers.update(layer for layer in range(self.num_layers) if (layer + 1) % step)
        return MoeSpec(
            num_experts=num_experts,
            num_experts_per_tok=int(config["num_experts_per_tok"]),
            intermediate_size=int(config["moe_intermediate_size"]),
            norm_topk_prob=bool(config["norm_topk_prob"]),
            dense_layers=frozenset(dense_layers),
        )


def _end_tokens(sources: tuple[Config, ...]) -> tuple[int, ...]:
    ids: set[int] = set()
    for source in sources:
        value = source.get("eos_token_id")
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return tuple(sorted(ids))
