"""The few operations every model is made of, behind one seam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch

from evenflow.core.gguf_file import GGMLType

Activation = Literal["silu", "gelu_tanh"]
Linear = Callable[[torch.Tensor], torch.Tensor]


@dataclass(slots=True, frozen=True)
class QuantisedRows:
    """A weight as a GGUF file stores it: each row a sequence of quantised groups.

    Attributes:
        type: how the entries are stored.
        rows: (out_features, bytes per row), uint8, contiguous.
        in_features: entries per row.
        is_mapped: whether the rows are a view of the mapped file.
    """

    type: GGMLType
    rows: torch.Tensor
    in_features: int
    is_mapped: bool = False


Weight: TypeAlias = torch.Tensor | QuantisedRows
"""A matrix (out_features, in_features): fp32, or as a file stores it. Never written to."""

Embedding: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From ids (n,) to the rows of a table that they name, a fresh fp32 (n, in_features)."""


class Ops(Protocol):
    """Building blocks of a forward pass, all in the compute dtype of the back end (fp32 on CPU).

    Every implementation computes row i of its result from row i of its input alone.
    """

    def linear(self, weights: Sequence[Weight], bias: torch.Tensor | None = None) -> Linear:
        """Return the function x -> x @ weight.T + bias, for some weights one above the other.

        Args:
            weights: each (its out_features, in_features); kept, or copied into another form.
            bias: (all out_features,), fp32.

        Returns:
            A function from (n, in_features) to (n, all out_features), in the order of the weights.
        """
        ...

    def embedding(self, weight: Weight, factor: float = 1.0) -> Embedding:
        """Return the function ids -> weight[ids] * factor."""
        ...

    def vocabulary(self, weight: Weight, factor: float = 1.0) -> tuple[Embedding, Linear]:
        """Return the embedding, times a factor, and the linear of one table that serves as both."""
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Return x / sqrt(mean(x^2) + eps) * weight over the last dimension.

        Args:
            x: (..., dim); a strided view is fine as long as the last dimension is contiguous.
            weight: (dim,).
            eps: added to the mean square.
        """
        ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Add x into `residual` in place and return the norm of the sum.

        Args:
            x: (n, dim).
            residual: (n, dim), changed in place.
            weight: (dim,).
            eps: added to the mean square.
        """
        ...

    def gated(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Return activation(gate) * up.

        Args:
            gate_up: (n, 2 * intermediate_size), gate first.
            activation: the non-linearity of the gate.

        Returns:
            (n, intermediate_size).
        """
        ...
