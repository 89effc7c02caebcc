"""`Ops` in plain torch: runs on any device, and says what the fast versions must compute."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from evenflow.execution.ops import Activation, Linear


class TorchOps:
    """Portable building blocks of a forward pass."""

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """Return x -> x @ weight.T + bias (see `Ops.linear`)."""
        return lambda x: F.linear(x, weight, bias)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Return x / sqrt(mean(x^2) + eps) * weight (see `Ops.rms_norm`)."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Add x into `residual` and return the norm of the sum (see `Ops.add_rms_norm`)."""
        residual += x
        return self.rms_norm(residual, weight, eps)

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Rotate each head's pairs in place (see `Ops.rotate`)."""
        half = cos.shape[-1]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        first, second = x[..., :half], x[..., half : 2 * half]
        rotated = first * cos - second * sin
        second.copy_(second * cos + first * sin)
        first.copy_(rotated)

    def gated(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Return activation(gate) * up (see `Ops.gated`)."""
        gate, up = gate_up.chunk(2, dim=-1)
        if activation == "silu":
            return F.silu(gate) * up
        return F.gelu(gate, approximate="tanh") * up
