"""Weights from GGUF files: tensor names and conventions of Hugging Face, as stored or as fp32.

llama.cpp's converter changes more than names, and each change is undone here:
    llama: rows of q and k are reordered from halves (GPT-NeoX rotation) to pairs (GPT-J rotation);
    gemma3: norm weights are stored as 1 + w;
    mixtral, qwen3moe: the experts of a layer are stacked in one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from evenflow.core.errors import ModelFormatError, UnsupportedModelError
from evenflow.core.gguf_file import GGMLType, GGUFFile, GGUFTensor
from evenflow.execution.dequantise import dequantise
from evenflow.execution.ops import QuantisedRows
from evenflow.models.spec import Architecture, ModelSpec
from evenflow.models.weights.shapes import linear_weights

_MODEL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OWN_LAYER_NAMES: dict[Architecture, dict[str, str]] = {
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "mixtral": {"ffn_gate_inp": "block_sparse_moe.gate"},
    "qwen3_moe": {"ffn_gate_inp": "mlp.gate"},
}
_EXPERT_NAMES: dict[Architecture, dict[str, str]] = {
    "mixtral": {
        "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
        "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
        "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    },
    "qwen3_moe": {
        "ffn_gate_exps": "mlp.experts.{}.gate_proj",
        "ffn_down_exps": "mlp.experts.{}.down_proj",
        "ffn_up_exps": "mlp.experts.{}.up_proj",
    },
}
_NOT_WEIGHTS = frozenset({"rope_freqs.weight"})  # read into the model's description instead

_LLAMA_FAMILY = frozenset({"llama", "mixtral"})
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_MODEL_TENSOR = re.compile(r"(\w+)\.(weight|bias)")


@dataclass(slots=True, frozen=True)
class _Part:
    """A tensor of the file, or the slice of it that belongs to one expert."""

    tensor: GGUFTensor
    expert: int | None = None


class GGUFWeights:
    """The tensors of a GGUF file, read one at a time.

    Args:
        file: the open file.
        spec: its description, from `spec_from_gguf`.
        keep: names of the types in which linear weights stay as they are stored.

    Attributes:
        stored_types: how each weight that `stored` returns is stored, by name.

    Raises:
        UnsupportedModelError: the file has a tensor that the architecture has no place for.
    """

    def __init__(self, file: GGUFFile, spec: ModelSpec, *, keep: Collection[str] = ()) -> None:
        self._file = file
        self._spec = spec
        self._parts: dict[str, _Part] = {}
        for tensor in file.tensors.values():
            if tensor.name not in _NOT_WEIGHTS:
                self._parts.update(_named_parts(tensor, spec.architecture))
        self.stored_types: Mapping[str, GGMLType] = {
            name: self._parts[name].tensor.type
            for name in linear_weights(spec)
            if name in self._parts and self._parts[name].tensor.type.name in keep
        }

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        return frozenset(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading its data."""
        part = self._part(name)
        return part.tensor.shape if part.expert is None else part.tensor.shape[1:]

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor as contiguous fp32.

        Raises:
            ModelFormatError: there is no such tensor.
            UnsupportedModelError: it is stored in a type that gguf does not dequantise.
        """
        part = self._part(name)
        values = dequantise(self._rows(part), part.tensor.type).view(self.shape(name))
        if self._spec.architecture == "gemma3" and name.endswith("norm.weight"):
            return values.sub_(1)
        return self._restore_order(name, values)

    def stored(self, name: str) -> QuantisedRows | None:
        """Return a weight as the file has it, over a mapping of its own where it can.

        Raises:
            ModelFormatError: there is no such tensor.
        """
        part = self._part(name)
        if name not in self.stored_types:
            return None
        mapped = self._rows(part)
        rows = self._restore_order(name, mapped)
        return QuantisedRows(
            part.tensor.type, rows, part.tensor.shape[-1], is_mapped=rows is mapped
        )

    def _part(self, name: str) -> _Part:
        if name not in self._parts:
            raise ModelFormatError(f"{self._file.path} has no tensor {name!r}")
        return self._parts[name]

    def _rows(self, part: _Part) -> torch.Tensor:
        """Map the bytes of a tensor, uint8 (num_rows, row_bytes)."""
        rows = torch.from_numpy(self._file.rows(part.tensor))
        if part.expert is None:
            return rows
        return rows.view(part.tensor.shape[0], -1, rows.shape[1])[part.expert]

    def _restore_order(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Undo the converter's order of a tensor's rows, be they values or bytes."""
        if self._spec.architecture in _LLAMA_FAMILY:
            if ".self_attn.q_proj." in name:
                return _pairs_to_halves(rows, self._spec.num_heads)
            if ".self_attn.k_proj." in name:
                return _pairs_to_halves(rows, self._spec.num_kv_heads)
        return rows


def _named_parts(tensor: GGUFTensor, architecture: Architecture) -> dict[str, _Part]:
    """Return the Hugging Face tensors that a tensor of the file holds."""
    if match := _MODEL_TENSOR.fullmatch(tensor.name):
        stem, kind = match.groups()
        if stem in _MODEL_NAMES:
            return {f"{_MODEL_NAMES[stem]}.{kind}": _Part(tensor)}
    elif match := _LAYER_TENSOR.fullmatch(tensor.name):
        layer, stem, kind = match.groups()
        prefix = f"model.layers.{layer}"
        layer_names = _LAYER_NAMES | _OWN_LAYER_NAMES.get(architecture, {})
        if stem in layer_names:
            return {f"{prefix}.{layer_names[stem]}.{kind}": _Part(tensor)}
        expert_names = _EXPERT_NAMES.get(architecture, {})
        if stem in expert_names and len(tensor.shape) == 3:
            return {
                f"{prefix}.{expert_names[stem].format(expert)}.{kind}": _Part(tensor, expert)
                for expert in range(tensor.shape[0])
            }
    raise UnsupportedModelError(
        f"the tensor {tensor.name!r} has no place in a {architecture} model",
        why="leaving it out would change what the model says",
        fix="convert the model with a current llama.cpp",
    )


def _pairs_to_halves(values: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of each head from (0, h, 1, h + 1, ...) to (0, 1, ..., h, h + 1, ...).

    Args:
        values: (num_heads * head_dim, ...), a weight or a bias; h is head_dim / 2.
        num_heads: heads among the rows.

    Returns:
        The same shape, contiguous.
    """
    pairs = values.view(num_heads, -1, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)
