"""What a model is, in numbers: the one description all loaders produce and all models read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from evenflow.execution.ops import Activation

Architecture = Literal["llama", "qwen2", "qwen3", "gemma3", "mixtral", "qwen3_moe"]


@dataclass(slots=True, frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    Attributes:
        kind: "linear" divides all frequencies by `factor`; "llama3" divides the low ones and blends
            between; "yarn" interpolates by frequency band and scales the rotation.
        factor: stretch.
        low_freq_factor: llama3: wavelengths above original / low are divided by `factor`.
        high_freq_factor: llama3: wavelengths below original / high are kept.
        original_max_position_embeddings: trained context in tokens.
        beta_fast: yarn: rotations above which a dimension is kept.
        beta_slow: yarn: rotations below which a dimension is interpolated.
        attention_factor: yarn: factor of cos and sin; None derives it from `factor`.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(slots=True, frozen=True)
class MoeSpec:
    """The mixture-of-experts part of a model.

    Attributes:
        num_experts: experts per sparse layer.
        num_experts_per_tok: experts each token visits.
        intermediate_size: width of one expert.
        norm_topk_prob: whether the chosen experts' weights are rescaled to sum to one.
        dense_layers: layers with an ordinary MLP instead.
    """

    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    norm_topk_prob: bool
    dense_layers: frozenset[int] = frozenset()


@dataclass(slots=True, frozen=True, kw_only=True)
class ModelSpec:
    """Shape and constants of a decoder-only model.

    Attributes:
        architecture: which module of `evenflow.models` builds it.
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width of the dense MLP.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: entries per head.
        rms_norm_eps: epsilon of every RMSNorm.
        rope_theta: base of the rotary frequencies.
        rope_scaling: stretch of the rotary frequencies.
        local_rope_theta: base used by sliding-window layers when it differs (Gemma 3).
        max_position_embeddings: longest context the model was made for, in tokens.
        tie_word_embeddings: whether the output matrix is the embedding.
        attention_bias: whether q, k and v projections have a bias (Qwen 2).
        attention_output_bias: whether the output projection has one.
        mlp_bias: whether the MLP projections have one.
        activation: non-linearity of the gate.
        layer_windows: sliding window in tokens of each layer, None for full attention.
        attention_scale: factor of the scores; None means head_dim ** -0.5.
        moe: mixture-of-experts part, None for dense models.
        bos_token_id: start token, if any.
        eos_token_ids: tokens that end a generation.
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    layer_windows: tuple[int | None, ...] = field(default=())
    attention_scale: float | None = None
    moe: MoeSpec | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def window(self, layer: int) -> int | None:
        """Return the sliding window of a layer in tokens, or None."""
        return self.layer_windows[layer] if self.layer_windows else None

    @property
    def scale(self) -> float:
        """Factor of the attention scores."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale
