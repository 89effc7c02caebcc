"""Weights from GGUF files: tensor names and conventions of Hugging Face, dequantised to fp32.

llama.cpp's converter changes more than names, and each change is undone here:
    llama: rows of q and k are reordered from halves (GPT-NeoX rotation) to pairs (GPT-J rotation);
    gemma3: norm weights are stored as 1 + w;
    mixtral, qwen3moe: the experts of a layer are stacked in one tensor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from evenflow.core.errors import ModelFormatError, UnsupportedModelError
from evenflow.core.gguf_file import GGMLType, GGUFFile, GGUFTensor
from evenflow.models.spec import Architecture, ModelSpec

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

_CHUNK_ITEMS = 1 << 20  # dequantised at a time, to keep temporaries small


@dataclass(slots=True, frozen=True)
class _Part:
    """A tensor of the file, or the slice of it that belongs to one expert."""

    tensor: GGUFTensor
    expert: int | None = None


class GGUFWeights:
    """The tensors of a GGUF file, read and dequantised one at a time.

    Args:
        file: the open file.
        spec: its description, from `spec_from_gguf`.

    Raises:
        UnsupportedModelError: the file has a tensor that the architecture has no place for.
    """

    def __init__(self, file: GGUFFile, spec: ModelSpec) -> None:
        self._file = file
        self._spec = spec
        self._parts: dict[str, _Part] = {}
        for tensor in file.tensors.values():
            if tensor.name not in _NOT_WEIGHTS:
                self._parts.update(_named_parts(tensor, spec.architecture))

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
        part, shape = self._part(name), self.shape(name)
        rows = self._file.rows(part.tensor)
        if part.expert is not None:
            rows = rows.reshape(part.tensor.shape[0], -1, rows.shape[1])[part.expert]
        values = _dequantise(rows, part.tensor.type, shape[-1]).view(shape)
        return self._undo_conversion(name, values)

    def _part(self, name: str) -> _Part:
        if name not in self._parts:
            raise ModelFormatError(f"{self._file.path} has no tensor {name!r}")
        return self._parts[name]

    def _undo_conversion(self, name: str, values: torch.Tensor) -> torch.Tensor:
        architecture = self._spec.architecture
        if architecture == "gemma3" and name.endswith("norm.weight"):
            return values.sub_(1)
        if architecture in _LLAMA_FAMILY and ".self_attn.q_proj." in name:
            return _pairs_to_halves(values, self._spec.num_heads)
        if architecture in _LLAMA_FAMILY and ".self_attn.k_proj." in name:
            return _pairs_to_halves(values, self._spec.num_kv_heads)
        return values


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


def _dequantise(rows: npt.NDArray[np.uint8], storage: GGMLType, row_size: int) -> torch.Tensor:
    """Return (num_rows, row_size) fp32 from the stored bytes (num_rows, row_bytes)."""
    import gguf  # only a first load needs it; later ones read the loaded form

    kind = gguf.GGMLQuantizationType[storage.name]
    values = np.empty((len(rows), row_size), np.float32)
    step = max(1, _CHUNK_ITEMS // row_size)
    try:
        for start in range(0, len(rows), step):
            values[start : start + step] = gguf.dequantize(rows[start : start + step], kind)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"tensors of type {storage.name} cannot be dequantised",
            why=str(error),
            fix="use a file of another quantisation, Q4_K_M or Q8_0 for instance",
        ) from error
    return torch.from_numpy(values)


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
