"""Random weights in place of trained ones, to measure shapes without downloading them."""

from __future__ import annotations

import zlib

import torch

from evenflow.core.errors import ModelFormatError
from evenflow.execution.ops import QuantisedRows
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.shapes import tensor_shapes

_STD = 0.02


class DummyWeights:
    """Small random weights of a model's shapes; a tensor depends on seed and name alone.

    Args:
        spec: the model.
        seed: of all tensors.
    """

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        self._shapes = tensor_shapes(spec)
        self._seed = seed
        # Gemma's norms multiply by 1 + w, all others by w.
        self._norm_centre = 0.0 if spec.architecture == "gemma3" else 1.0

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        return frozenset(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        if name not in self._shapes:
            raise ModelFormatError(f"the model has no tensor {name!r}")
        return self._shapes[name]

    def tensor(self, name: str) -> torch.Tensor:
        """Make one tensor, fp32."""
        shape = self.shape(name)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        values = torch.randn(shape, generator=generator).mul_(_STD)
        return values.add_(self._norm_centre) if name.endswith("norm.weight") else values

    def stored(self, name: str) -> QuantisedRows | None:
        """Return None: all tensors are fp32."""
        return None
