"""`Ops` in plain torch: runs on any device, and says what the fast versions must compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from evenflow.execution.dequantise import dequantise
from evenflow.execution.ops import Activation, Embedding, Linear, QuantisedRows, Weight


class TorchOps:
    """Portable building blocks of a forward pass."""

    def linear(self, weights: Sequence[Weight], bias: torch.Tensor | None = None) -> Linear:
        """Return x -> x @ weight.T + bias (see `Ops.linear`)."""
        values = [_values(weight) for weight in weights]
        stacked = values[0] if len(values) == 1 else torch.cat(values)
        return lambda x: F.linear(x, stacked, bias)

    def embedding(self, weight: Weight, factor: float = 1.0) -> Embedding:
        """Return ids -> weight[ids] * factor (see `Ops.embedding`)."""
        table = _values(weight)
        if factor == 1.0:
            return lambda ids: table.index_select(0, ids)
        return lambda ids: table.index_select(0, ids).mul_(factor)

    def vocabulary(self, weight: Weight, factor: float = 1.0) -> tuple[Embedding, Linear]:
        """Return both uses of one table (see `Ops.vocabulary`)."""
        table = _values(weight)
        return self.embedding(table, factor), self.linear([table])

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Return x / sqrt(mean(x^2) + eps) * weight (see `Ops.rms_norm`)."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Add x into `residual` and return the norm of the sum (see `Ops.add_rms_norm`)."""
        residual += x
        return self.rms_norm(residual, weight, eps)

    def gated(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Return activation(gate) * up (see `Ops.gated`)."""
        gate, up = gate_up.chunk(2, dim=-1)
        if activation == "silu":
            return F.silu(gate) * up
        return F.gelu(gate, approximate="tanh") * up


def _values(weight: Weight) -> torch.Tensor:
    if isinstance(weight, QuantisedRows):
        return dequantise(weight.rows, weight.type)
    return weight
