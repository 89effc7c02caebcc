"""Llama 2 and 3, and what is built like them: SmolLM2, Mistral.

The plain decoder. Llama 3 stretches its rotary frequencies and Mistral gives every layer a sliding
window; both are numbers in the spec.
"""

from __future__ import annotations

from evenflow.execution.ops import Ops
from evenflow.models.decoder import Decoder, Mlp, Parts, SelfAttention
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.source import WeightSource


def build_llama(spec: ModelSpec, weights: WeightSource, ops: Ops) -> Decoder:
    """Build a Llama from its weights."""
    parts = Parts(spec, weights, ops)
    return Decoder(
        parts,
        attention=lambda layer: SelfAttention(
            parts, layer, bias=spec.attention_bias, output_bias=spec.attention_output_bias
        ),
        feed_forward=lambda layer: Mlp.at(parts, f"model.layers.{layer}.mlp", bias=spec.mlp_bias),
    )
