"""Mixtral: a Llama with a mixture of experts for an MLP in every layer."""

from __future__ import annotations

from evenflow.execution.ops import Ops
from evenflow.models.decoder import Decoder, FeedForward, Mlp, Parts, SelfAttention
from evenflow.models.moe import SparseMoe, moe_spec
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.source import WeightSource


def build_mixtral(spec: ModelSpec, weights: WeightSource, ops: Ops) -> Decoder:
    """Build a Mixtral from its weights."""
    parts = Parts(spec, weights, ops)
    moe = moe_spec(spec)

    def feed_forward(layer: int) -> FeedForward:
        prefix = f"model.layers.{layer}.block_sparse_moe"
        experts = [
            Mlp(parts, gate=f"{expert}.w1", up=f"{expert}.w3", down=f"{expert}.w2")
            for expert in (f"{prefix}.experts.{index}" for index in range(moe.num_experts))
        ]
        return SparseMoe(parts.linear(f"{prefix}.gate"), experts, moe)

    return Decoder(
        parts, attention=lambda layer: SelfAttention(parts, layer), feed_forward=feed_forward
    )
