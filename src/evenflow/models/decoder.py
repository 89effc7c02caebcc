"""The blocks decoder-only models are made of, and the decoder most of them are.

Knows: how named tensors become operations, attention and MLP blocks, the pre-norm residual stream.
Does not know: which architecture uses which block; that is what the modules beside it say.

Invariants:
    At most the tensors of one linear are held besides the finished blocks while a model loads.
    Nothing is kept between two forward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from evenflow.execution.attention import Attention, Rotation
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.ops import Linear, Ops, Weight
from evenflow.models.rotary import RotaryTable
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.source import WeightSource

FeedForward: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""A function of each row alone, from (n, hidden_size) to (n, hidden_size)."""


@dataclass(slots=True, frozen=True)
class Parts:
    """What every block is built from.

    Attributes:
        spec: the model's numbers.
        weights: the model's tensors.
        ops: the operations to build with.
    """

    spec: ModelSpec
    weights: WeightSource
    ops: Ops

    def linear(self, *names: str, bias: bool = False) -> Linear:
        """Build one linear whose outputs are those of the named projections side by side."""
        biases = [self.weights.tensor(f"{name}.bias") for name in names] if bias else []
        return self.ops.linear(
            [self.weight(f"{name}.weight") for name in names], torch.cat(biases) if biases else None
        )

    def weight(self, name: str) -> Weight:
        """Read the matrix of a linear or an embedding in the form the source holds it in."""
        return self.weights.stored(name) or self.weights.tensor(name)


class Vocabulary:
    """Both ends of a model.

    Args:
        parts: what to build from.
        factor: of the vectors.

    Attributes:
        embed: token ids (num_tokens,) to vectors, a fresh (num_tokens, hidden_size).
        logits: vectors to the scores of all token ids.
    """

    def __init__(self, parts: Parts, factor: float = 1.0) -> None:
        table = parts.weight("model.embed_tokens.weight")
        if parts.spec.tie_word_embeddings:
            self.embed, self.logits = parts.ops.vocabulary(table, factor)
        else:
            self.embed = parts.ops.embedding(table, factor)
            self.logits = parts.linear("lm_head")


class SelfAttention:
    """Grouped-query attention with rotary positions, from projections to output.

    Args:
        parts: what to build from.
        layer: index of the layer.
        bias: whether the q, k and v projections have biases.
        output_bias: whether the output projection has one.
        qk_norm: RMSNorm weights, each (head_dim,), applied to every q and every k head before the
            rotation; None for architectures without.
    """

    def __init__(
        self,
        parts: Parts,
        layer: int,
        *,
        bias: bool = False,
        output_bias: bool = False,
        qk_norm: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        spec = parts.spec
        prefix = f"model.layers.{layer}.self_attn"
        self._qkv = parts.linear(
            f"{prefix}.q_proj", f"{prefix}.k_proj", f"{prefix}.v_proj", bias=bias
        )
        self._output = parts.linear(f"{prefix}.o_proj", bias=output_bias)
        self._qk_norm = qk_norm
        self._ops = parts.ops
        self._layer = layer
        self._heads = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        self._head_dim = spec.head_dim
        self._eps = spec.rms_norm_eps
        self._scale = spec.scale
        self._window = spec.window(layer)

    def __call__(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        batch: ForwardBatch,
        attention: Attention,
        *,
        last_only: bool,
    ) -> torch.Tensor:
        """Map (num_tokens, hidden_size) to the same shape, or to (num_requests, hidden_size)."""
        qkv = self._qkv(x).view(x.shape[0], -1, self._head_dim)
        q, k, v = qkv.split_with_sizes(self._heads, dim=1)
        if self._qk_norm is not None:
            q = self._ops.rms_norm(q, self._qk_norm[0], self._eps)
            k = self._ops.rms_norm(k, self._qk_norm[1], self._eps)
        attention.rotate_store(self._layer, q, k, v, rotation, batch)
        if last_only:
            q, batch = q[batch.last_rows], batch.last_tokens()
        out = attention.attend(self._layer, q, batch, scale=self._scale, window=self._window)
        return self._output(out.flatten(1))


class Mlp:
    """A gated MLP: down(activation(gate(x)) * up(x)).

    Args:
        parts: what to build from.
        gate: name of the gate projection.
        up: name of the up projection.
        down: name of the down projection.
        bias: whether the three have biases.
    """

    def __init__(self, parts: Parts, *, gate: str, up: str, down: str, bias: bool = False) -> None:
        self._gate_up = parts.linear(gate, up, bias=bias)
        self._down = parts.linear(down, bias=bias)
        self._ops = parts.ops
        self._activation = parts.spec.activation

    @classmethod
    def at(cls, parts: Parts, prefix: str, *, bias: bool = False) -> Mlp:
        """Build the MLP whose projections bear the usual names under `prefix`."""
        return cls(
            parts,
            gate=f"{prefix}.gate_proj",
            up=f"{prefix}.up_proj",
            down=f"{prefix}.down_proj",
            bias=bias,
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, hidden_size) to the same shape."""
        return self._down(self._ops.gated(self._gate_up(x), self._activation))


@dataclass(slots=True, frozen=True)
class _Layer:
    """One pre-norm layer; each norm follows the sum that it reads.

    Attributes:
        attention: attention block.
        attention_sum_norm: (hidden_size,), norm in front of the feed-forward block.
        feed_forward: feed-forward block.
        feed_forward_sum_norm: (hidden_size,), norm in front of the next layer, or the final norm.
    """

    attention: SelfAttention
    attention_sum_norm: torch.Tensor
    feed_forward: FeedForward
    feed_forward_sum_norm: torch.Tensor


class Decoder:
    """A pre-norm decoder: x += attention(norm(x)); x += feed_forward(norm(x)), layer after layer.

    Args:
        parts: what to build from.
        attention: builds the attention block of a layer.
        feed_forward: builds the feed-forward block of a layer.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        attention: Callable[[int], SelfAttention],
        feed_forward: Callable[[int], FeedForward],
    ) -> None:
        self._ops = parts.ops
        self._eps = parts.spec.rms_norm_eps
        self._vocabulary = Vocabulary(parts)
        norm = parts.weights.tensor
        layers = [f"model.layers.{layer}" for layer in range(parts.spec.num_layers)]
        input_norms = [norm(f"{layer}.input_layernorm.weight") for layer in layers]
        input_norms.append(norm("model.norm.weight"))
        self._first_norm = input_norms[0]
        self._rotary = RotaryTable.from_spec(parts.spec, parts.ops, self._first_norm.device)
        self._layers = [
            _Layer(
                attention=attention(index),
                attention_sum_norm=norm(f"{layer}.post_attention_layernorm.weight"),
                feed_forward=feed_forward(index),
                feed_forward_sum_norm=input_norms[index + 1],
            )
            for index, layer in enumerate(layers)
        ]

    def forward(
        self, batch: ForwardBatch, attention: Attention, *, last_only: bool = False
    ) -> torch.Tensor:
        """Return the hidden states after the final norm (see `CausalLM.forward`)."""
        add_norm, eps = self._ops.add_rms_norm, self._eps
        rotation = self._rotary.rows(batch.positions)
        residual = self._vocabulary.embed(batch.token_ids)
        x = self._ops.rms_norm(residual, self._first_norm, eps)
        for layer in self._layers:
            stops_here = last_only and layer is self._layers[-1]
            x = layer.attention(x, rotation, batch, attention, last_only=stops_here)
            if stops_here:
                residual = residual[batch.last_rows]
            x = add_norm(x, residual, layer.attention_sum_norm, eps)
            x = layer.feed_forward(x)
            x = add_norm(x, residual, layer.feed_forward_sum_norm, eps)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (m, vocab_size) for (m, hidden_size)."""
        return self._vocabulary.logits(hidden)
