"""The seam between model files and models."""

from __future__ import annotations

from typing import Protocol

import torch

from evenflow.execution.ops import QuantisedRows


class WeightSource(Protocol):
    """Named tensors, read one at a time.

    Names and conventions are those of the architecture's Hugging Face checkpoint
    (`model.layers.0.self_attn.q_proj.weight`), whatever the file calls them.
    """

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading its data.

        Raises:
            ModelFormatError: there is no such tensor.
        """
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor as contiguous fp32 on the CPU.

        Raises:
            ModelFormatError: there is no such tensor, or its data are damaged.
        """
        ...

    def stored(self, name: str) -> QuantisedRows | None:
        """Return a linear weight in few bits, or None if `tensor` is the form to take.

        Raises:
            ModelFormatError: there is no such tensor, or its data are damaged.
        """
        ...
