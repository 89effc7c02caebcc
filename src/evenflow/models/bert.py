"""BERT (Devlin et al., 2018): an encoder in which all tokens of a text see each other.

Texts lie one behind the other without padding. Everything but attention looks at single rows, and
attention at single texts, so what comes out for a text does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from evenflow.core.errors import ModelFormatError, UnsupportedModelError
from evenflow.execution.ops import Ops
from evenflow.models.weights.shapes import Shape
from evenflow.models.weights.source import WeightSource

# What the description may leave out, and what it must say for the mathematics below to hold.
_DEFAULT_LAYER_NORM_EPS = 1e-12
_REQUIRED = {"hidden_act": "gelu", "position_embedding_type": "absolute"}


@dataclass(slots=True, frozen=True)
class BertSpec:
    """Shape and constants of an encoder.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_layers: encoder layers.
        num_heads: attention heads.
        max_position_embeddings: longest text in tokens.
        type_vocab_size: kinds of segments; all our texts are of the first kind.
        layer_norm_eps: epsilon of every LayerNorm.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BertSpec:
        """Read the description of a `config.json`.

        Raises:
            UnsupportedModelError: it describes something else than a plain BERT.
            ModelFormatError: it lacks a number.
        """
        if config.get("model_type") != "bert":
            raise UnsupportedModelError(
                "this is no sentence model that evenflow knows",
                why=f"its config.json describes {config.get('model_type')!r}, not 'bert'",
                fix="use a BERT encoder such as all-minilm-l6-v2",
            )
        for key, needed in _REQUIRED.items():
            if config.get(key, needed) != needed:
                raise UnsupportedModelError(
                    f"BERT with {key} {config[key]!r} is not supported", why=f"only {needed!r} is"
                )
        try:
            return cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=int(config["hidden_size"]),
                intermediate_size=int(config["intermediate_size"]),
                num_layers=int(config["num_hidden_layers"]),
                num_heads=int(config["num_attention_heads"]),
                max_position_embeddings=int(config["max_position_embeddings"]),
                type_vocab_size=int(config.get("type_vocab_size", 2)),
                layer_norm_eps=float(config.get("layer_norm_eps", _DEFAULT_LAYER_NORM_EPS)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFormatError(
                "config.json does not describe a BERT", why=f"{type(error).__name__}: {error}"
            ) from error

    def tensor_shapes(self) -> dict[str, Shape]:
        """Return the tensors of a checkpoint of this shape, without the classifier on top."""
        hidden, wide = self.hidden_size, self.intermediate_size
        shapes: dict[str, Shape] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, hidden),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, hidden),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, hidden),
            **_norm_shapes("embeddings.LayerNorm", hidden),
        }
        for layer in range(self.num_layers):
            prefix = f"encoder.layer.{layer}"
            for name in ("self.query", "self.key", "self.value", "output.dense"):
                shapes |= _linear_shapes(f"{prefix}.attention.{name}", hidden, hidden)
            shapes |= _linear_shapes(f"{prefix}.intermediate.dense", hidden, wide)
            shapes |= _linear_shapes(f"{prefix}.output.dense", wide, hidden)
            shapes |= _norm_shapes(f"{prefix}.attention.output.LayerNorm", hidden)
            shapes |= _norm_shapes(f"{prefix}.output.LayerNorm", hidden)
        return shapes


class Bert:
    """The encoder, fp32.

    Args:
        spec: its numbers.
        weights: tensors under the names of `BertSpec.tensor_shapes`.
        ops: the operations to build with.
    """

    def __init__(self, spec: BertSpec, weights: WeightSource, ops: Ops) -> None:
        tensor = weights.tensor
        self.spec = spec
        self._words = tensor("embeddings.word_embeddings.weight")
        first_type = tensor("embeddings.token_type_embeddings.weight")[0]
        self._positions = tensor("embeddings.position_embeddings.weight") + first_type
        self._norm = _LayerNorm(weights, "embeddings.LayerNorm", spec)
        self._layers = [
            _Layer(spec, weights, ops, f"encoder.layer.{layer}") for layer in range(spec.num_layers)
        ]

    @torch.inference_mode()
    def forward(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return the last hidden states of each text, (num_tokens, hidden_size).

        Args:
            texts: token ids, at least one and at most `max_position_embeddings` in each.
        """
        lengths = [len(text) for text in texts]
        token_ids = torch.tensor([token_id for text in texts for token_id in text])
        positions = torch.cat([self._positions[:length] for length in lengths])
        x = self._norm(self._words[token_ids] + positions)
        for layer in self._layers:
            x = layer(x, lengths)
        return list(torch.split(x, lengths))


class _LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension."""

    def __init__(self, weights: WeightSource, name: str, spec: BertSpec) -> None:
        self._weight = weights.tensor(f"{name}.weight")
        self._bias = weights.tensor(f"{name}.bias")
        self._eps = spec.layer_norm_eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


class _Layer:
    """One post-norm layer: x = norm(x + attention(x)); x = norm(x + mlp(x))."""

    def __init__(self, spec: BertSpec, weights: WeightSource, ops: Ops, prefix: str) -> None:
        tensor = weights.tensor
        qkv = [f"{prefix}.attention.self.{name}" for name in ("query", "key", "value")]
        linears = (
            f"{prefix}.{name}.dense" for name in ("attention.output", "intermediate", "output")
        )
        self._qkv = ops.linear(
            [tensor(f"{name}.weight") for name in qkv],
            torch.cat([tensor(f"{name}.bias") for name in qkv]),
        )
        self._output, self._up, self._down = (
            ops.linear([tensor(f"{name}.weight")], tensor(f"{name}.bias")) for name in linears
        )
        self._attention_norm = _LayerNorm(weights, f"{prefix}.attention.output.LayerNorm", spec)
        self._mlp_norm = _LayerNorm(weights, f"{prefix}.output.LayerNorm", spec)
        self._num_heads = spec.num_heads

    def __call__(self, x: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Map (num_tokens, hidden_size) to the same shape."""
        x = self._attention_norm(x + self._output(self._attend(self._qkv(x), lengths)))
        return self._mlp_norm(x + self._down(F.gelu(self._up(x))))

    def _attend(self, qkv: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Let the tokens of each text see each other."""
        out = []
        for rows in torch.split(qkv, list(lengths)):
            heads = rows.view(len(rows), 3, self._num_heads, -1).permute(1, 2, 0, 3)
            q, k, v = heads.unsqueeze(1)  # each (1, num_heads, num_tokens, head_dim)
            seen = F.scaled_dot_product_attention(q, k, v)
            out.append(seen[0].transpose(0, 1).reshape(len(rows), -1))
        return torch.cat(out)


def _linear_shapes(name: str, num_inputs: int, num_outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (num_outputs, num_inputs), f"{name}.bias": (num_outputs,)}


def _norm_shapes(name: str, size: int) -> dict[str, Shape]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
