"""Weights where they are computed with."""

from __future__ import annotations

import torch

from evenflow.execution.ops import QuantisedRows
from evenflow.models.weights.source import WeightSource


class PlacedWeights:
    """Weights on a device. Matrices have its compute type; vectors, norms and biases, stay fp32.

    Args:
        source: gives fp32 on the CPU.
        device: where the model computes.
        dtype: in what.
    """

    def __init__(self, source: WeightSource, device: torch.device, dtype: torch.dtype) -> None:
        self._source = source
        self._device = device
        self._dtype = dtype

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading its data."""
        return self._source.shape(name)

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor and bring it to the device."""
        values = self._source.tensor(name)
        return values.to(self._device, self._dtype if values.dim() > 1 else values.dtype)

    def stored(self, name: str) -> QuantisedRows | None:
        """Return None: no device has kernels for quantised weights."""
        return None
