"""Rounds weights to 8 or 4 bits while they are read, into the types that GGUF files use.

A row is cut into groups of 32 entries, and each group is stored by itself:

    Q8_0   scale fp16 | 32 codes int8                    entry = scale * code
    Q4_1   scale fp16 | offset fp16 | 16 pairs of codes  entry = scale * code + offset, code 0 to 15

The low four bits of pair i are the code of entry i, the high four that of entry i + 16.
"""

from __future__ import annotations

from typing import Literal

import torch

from evenflow.core.gguf_file import GGML_TYPES, GGMLType
from evenflow.execution.ops import QuantisedRows
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.shapes import VOCABULARY, linear_weights
from evenflow.models.weights.source import WeightSource

Q4_1 = GGML_TYPES[3]
Q8_0 = GGML_TYPES[8]

_GROUP = 32
_SMALLEST_FP16 = 2.0**-24
_FIT_ROUNDS = 3  # take an eighth off the squared error of spanning each group's range
_CHUNK_GROUPS = 1 << 15  # rounded at a time, to keep temporaries small


def rounded_types(spec: ModelSpec, precision: Literal["w4a8", "w8a8"]) -> dict[str, GGMLType]:
    """Return the types that linear weights are rounded to, by name.

    Both ends of a model, where an error is felt most, get 8 bits in any case. Norms, biases and
    routers stay fp32, and so do weights whose rows are no whole number of groups.

    Args:
        spec: the model.
        precision: "w4a8" rounds to Q4_1, "w8a8" to Q8_0.
    """
    inner = Q4_1 if precision == "w4a8" else Q8_0
    return {
        name: Q8_0 if name in VOCABULARY else inner
        for name, shape in linear_weights(spec).items()
        if shape[1] % _GROUP == 0
    }


class RoundedWeights:
    """Another source's weights, the linear ones in few bits.

    Args:
        source: where the weights come from.
        spec: what they belong to.
        precision: see `rounded_types`.
    """

    def __init__(
        self, source: WeightSource, spec: ModelSpec, precision: Literal["w4a8", "w8a8"]
    ) -> None:
        self._source = source
        self._types = rounded_types(spec, precision)

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading its data."""
        return self._source.shape(name)

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor as it is in the source, fp32."""
        return self._source.tensor(name)

    def stored(self, name: str) -> QuantisedRows | None:
        """Read one weight and round it, or return None where `tensor` is the form to take."""
        storage = self._types.get(name)
        if storage is None:
            return None
        values = self._source.tensor(name)
        return QuantisedRows(storage, round_rows(values, storage), in_features=values.shape[1])


def round_rows(values: torch.Tensor, storage: GGMLType) -> torch.Tensor:
    """Store each row in groups of the given type.

    Args:
        values: (num_rows, row_size) fp32, row_size a multiple of 32.
        storage: Q4_1 or Q8_0.

    Returns:
        uint8 (num_rows, bytes per row).
    """
    groups = values.reshape(-1, _GROUP)
    round_groups = _round_to_q4_1 if storage == Q4_1 else _round_to_q8_0
    rounded = torch.empty(groups.shape[0], storage.block_bytes, dtype=torch.uint8)
    for start in range(0, len(groups), _CHUNK_GROUPS):
        chunk = slice(start, start + _CHUNK_GROUPS)
        rounded[chunk] = round_groups(groups[chunk])
    return rounded.view(values.shape[0], -1)


def _round_to_q8_0(groups: torch.Tensor) -> torch.Tensor:
    """Return (num_groups, 34) for (num_groups, 32)."""
    scale = (groups.abs().amax(1, keepdim=True) / 127).half()
    codes = (groups / _divisor(scale)).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([_bytes(scale), _bytes(codes)], dim=1)


def _round_to_q4_1(groups: torch.Tensor) -> torch.Tensor:
    """Return (num_groups, 20) for (num_groups, 32).

    Scale and offset start as what spans the group. Then, in turn, codes are taken that suit them
    best, and the least squares of the codes give new ones, which can only lower the error.
    """
    offset = groups.amin(1, keepdim=True)
    scale = (groups.amax(1, keepdim=True) - offset) / 15
    mean = groups.mean(1, keepdim=True)
    for _ in range(_FIT_ROUNDS):
        codes = _codes(groups, scale, offset)
        mean_code = codes.mean(1, keepdim=True)
        spread = codes - mean_code
        # All codes alike have no slope: the scale is 0, and the offset says it all.
        variance = spread.square().sum(1, keepdim=True).clamp_min(0.5)
        scale = (spread * (groups - mean)).sum(1, keepdim=True) / variance
        offset = mean - scale * mean_code
    scale, offset = scale.half(), offset.half()
    low, high = _codes(groups, scale, offset).to(torch.uint8).chunk(2, dim=1)
    return torch.cat([_bytes(scale), _bytes(offset), low | (high << 4)], dim=1)


def _codes(groups: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Return the codes from 0 to 15 that come nearest, as floats."""
    return ((groups - offset) / _divisor(scale)).round().clamp(0, 15)


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    """Return the scale as fp32, and never 0: what codes are worth then makes no difference."""
    return scale.float().clamp_min(_SMALLEST_FP16)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.uint8)
