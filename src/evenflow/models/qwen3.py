"""Qwen 3: a Llama that normalises every q and every k head before rotating it."""

from __future__ import annotations

from evenflow.execution.ops import Ops
from evenflow.models.decoder import Decoder, Mlp, Parts, SelfAttention
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.source import WeightSource


def build_qwen3(spec: ModelSpec, weights: WeightSource, ops: Ops) -> Decoder:
    """Build a Qwen 3 from its weights."""
    parts = Parts(spec, weights, ops)
    return Decoder(
        parts,
        attention=lambda layer: qwen3_attention(parts, layer),
        feed_forward=lambda layer: Mlp.at(parts, f"model.layers.{layer}.mlp"),
    )


def qwen3_attention(parts: Parts, layer: int) -> SelfAttention:
    """Build the attention block that all Qwen 3 models share."""
    prefix = f"model.layers.{layer}.self_attn"
    return SelfAttention(
        parts,
        layer,
        bias=parts.spec.attention_bias,
        output_bias=parts.spec.attention_output_bias,
        qk_norm=(
            parts.weights.tensor(f"{prefix}.q_norm.weight"),
            parts.weights.tensor(f"{prefix}.k_norm.weight"),
        ),
    )
