"""Qwen 3 MoE: Qwen 3 with a mixture of experts for an MLP in all but a few layers."""

from __future__ import annotations

from evenflow.execution.ops import Ops
from evenflow.models.decoder import Decoder, FeedForward, Mlp, Parts
from evenflow.models.moe import SparseMoe, moe_spec
from evenflow.models.qwen3 import qwen3_attention
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.source import WeightSource


def build_qwen3_moe(spec: ModelSpec, weights: WeightSource, ops: Ops) -> Decoder:
    """Build a Qwen 3 MoE from its weights."""
    parts = Parts(spec, weights, ops)
    moe = moe_spec(spec)

    def feed_forward(layer: int) -> FeedForward:
        prefix = f"model.layers.{layer}.mlp"
        if layer in moe.dense_layers:
            return Mlp.at(parts, prefix)
        experts = [Mlp.at(parts, f"{prefix}.experts.{expert}") for expert in range(moe.num_experts)]
        return SparseMoe(parts.linear(f"{prefix}.gate"), experts, moe)

    return Decoder(
        parts,
        attention=lambda layer: qwen3_attention(parts, layer),
        feed_forward=feed_forward,
    )
