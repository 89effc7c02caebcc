"""The few operations every model is made of, behind one seam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch

Activation = Literal["silu", "gelu_tanh"]
Linear = Callable[[torch.Tensor], torch.Tensor]


class Ops(Protocol):
    """Building blocks of a forward pass, all in the compute dtype of the back end (fp32 on CPU).

    Every implementation computes row i of its result from row i of its input alone.
    """

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """Return the function x -> x @ weight.T + bias.

        Args:
            weight: (out_features, in_features), fp32; kept, or copied into another form, and never
                written to.
            bias: (out_features,), fp32.

        Returns:
            A function from (n, in_features) to (n, out_features).
        """
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

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Rotate the pairs (x[i], x[i + d/2]) of each head in place (RoFormer, GPT-NeoX order).

        Args:
            x: (n, num_heads, head_dim), changed in place; may be a strided view.
            cos: (n, rotary_dim / 2); only the first rotary_dim entries of a head are rotated.
            sin: (n, rotary_dim / 2).
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
