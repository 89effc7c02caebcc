"""Qwen 2 and 2.5: a Llama whose q, k and v projections have biases.

Some of its models give their upper layers a sliding window (`ModelSpec.layer_windows`).
"""

from __future__ import annotations

from evenflow.execution.ops import Ops
from evenflow.models.decoder import Decoder, Mlp, Parts, SelfAttention
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.source import WeightSource


def build_qwen2(spec: ModelSpec, weights: WeightSource, ops: Ops) -> Decoder:
    """Build a Qwen 2 from its weights."""
    parts = Parts(spec, weights, ops)
    return Decoder(
        parts,
        attention=lambda layer: SelfAttention(parts, layer, bias=True),
        feed_forward=lambda layer: Mlp.at(parts, f"model.layers.{layer}.mlp"),
    )
