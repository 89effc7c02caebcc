"""Gemma 3, text only.

What sets it apart: token vectors are scaled by sqrt(hidden_size); norms multiply by 1 + weight;
each block is normalised on its way out as well as on its way in; q and k heads are normalised;
layers with a sliding window rotate with a base of their own and without rope scaling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evenflow.execution.attention import Attention
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.ops import Ops
from evenflow.models.decoder import Mlp, Parts, SelfAttention, Vocabulary
from evenflow.models.rotary import RotaryTable
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.source import WeightSource


@dataclass(slots=True, frozen=True)
class _Layer:
    """One layer; all norms are (hidden_size,) with the 1 already added.

    Attributes:
        is_local: whether the layer has a sliding window.
        attention: attention block.
        attention_out_norm: norm of what the attention block returns.
        attention_sum_norm: norm in front of the MLP.
        mlp: feed-forward block.
        mlp_out_norm: norm of what the MLP returns.
        mlp_sum_norm: norm in front of the next layer, or the final norm.
    """

    is_local: bool
    attention: SelfAttention
    attention_out_norm: torch.Tensor
    attention_sum_norm: torch.Tensor
    mlp: Mlp
    mlp_out_norm: torch.Tensor
    mlp_sum_norm: torch.Tensor


class Gemma3:
    """A Gemma 3 text model.

    Args:
        spec: the model's numbers.
        weights: the model's tensors.
        ops: the operations to build with.
    """

    def __init__(self, spec: ModelSpec, weights: WeightSource, ops: Ops) -> None:
        parts = Parts(spec, weights, ops)
        self._ops = ops
        self._eps = spec.rms_norm_eps
        self._vocabulary = Vocabulary(parts, factor=spec.hidden_size**0.5)
        self._first_norm = _norm(weights, "model.layers.0.input_layernorm")
        device = self._first_norm.device
        self._global_rotary = RotaryTable.from_spec(spec, ops, device)
        self._local_rotary = RotaryTable(
            spec.head_dim,
            spec.local_rope_theta or spec.rope_theta,
            spec.max_position_embeddings,
            ops=ops,
            device=device,
        )
        self._layers = [_build_layer(parts, layer) for layer in range(spec.num_layers)]

    def forward(
        self, batch: ForwardBatch, attention: Attention, *, last_only: bool = False
    ) -> torch.Tensor:
        """Return the hidden states after the final norm (see `CausalLM.forward`)."""
        norm, add_norm, eps = self._ops.rms_norm, self._ops.add_rms_norm, self._eps
        global_rotation = self._global_rotary.rows(batch.positions)
        local_rotation = self._local_rotary.rows(batch.positions)
        residual = self._vocabulary.embed(batch.token_ids)
        x = norm(residual, self._first_norm, eps)
        for layer in self._layers:
            rotation = local_rotation if layer.is_local else global_rotation
            stops_here = last_only and layer is self._layers[-1]
            x = layer.attention(x, rotation, batch, attention, last_only=stops_here)
            if stops_here:
                residual = residual[batch.last_rows]
            x = norm(x, layer.attention_out_norm, eps)
            x = add_norm(x, residual, layer.attention_sum_norm, eps)
            x = norm(layer.mlp(x), layer.mlp_out_norm, eps)
            x = add_norm(x, residual, layer.mlp_sum_norm, eps)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (m, vocab_size) for (m, hidden_size)."""
        return self._vocabulary.logits(hidden)


def _build_layer(parts: Parts, layer: int) -> _Layer:
    weights = parts.weights
    prefix = f"model.layers.{layer}"
    is_last = layer == parts.spec.num_layers - 1
    following = "model.norm" if is_last else f"model.layers.{layer + 1}.input_layernorm"
    return _Layer(
        is_local=parts.spec.window(layer) is not None,
        attention=SelfAttention(
            parts,
            layer,
            bias=parts.spec.attention_bias,
            output_bias=parts.spec.attention_output_bias,
            qk_norm=(
                _norm(weights, f"{prefix}.self_attn.q_norm"),
                _norm(weights, f"{prefix}.self_attn.k_norm"),
            ),
        ),
        attention_out_norm=_norm(weights, f"{prefix}.post_attention_layernorm"),
        attention_sum_norm=_norm(weights, f"{prefix}.pre_feedforward_layernorm"),
        mlp=Mlp.at(parts, f"{prefix}.mlp"),
        mlp_out_norm=_norm(weights, f"{prefix}.post_feedforward_layernorm"),
        mlp_sum_norm=_norm(weights, following),
    )


def _norm(weights: WeightSource, name: str) -> torch.Tensor:
    """Read a norm, which the checkpoint stores as its distance from 1."""
    return weights.tensor(f"{name}.weight") + 1.0
