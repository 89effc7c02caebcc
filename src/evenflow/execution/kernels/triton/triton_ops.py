"""`Ops` on a GPU: cuBLAS linears, and Triton kernels for all that works on single rows."""

from __future__ import annotations

import torch
import triton

from evenflow.execution.kernels.torch_ops import TorchOps
from evenflow.execution.kernels.triton import rows
from evenflow.execution.ops import Activation

_ENTRIES_PER_PROGRAM = 2048  # of short rows; a row that is longer has a program to itself
_GATE_BLOCK = 1024


class TritonOps(TorchOps):
    """Building blocks of a forward pass on a GPU, in the dtype of their first argument.

    Sums are kept in fp32 and weights of norms may be fp32 whatever the dtype of the rows. Only the
    linears, which are cuBLAS's, may round a row differently for another number of rows.
    """

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Return x / sqrt(mean(x^2) + eps) * weight (see `Ops.rms_norm`)."""
        return _norm(x, None, weight, eps)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Add x into `residual` and return the norm of the sum (see `Ops.add_rms_norm`)."""
        return _norm(x, residual, weight, eps)

    def gated(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Return activation(gate) * up (see `Ops.gated`)."""
        num_rows, dim = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty((num_rows, dim))
        block = min(_GATE_BLOCK, triton.next_power_of_2(dim))
        rows.gate_kernel[(num_rows, triton.cdiv(dim, block))](
            gate_up,
            gate_up.stride(0),
            out,
            DIM=dim,
            BLOCK=block,
            IS_SILU=activation == "silu",
        )
        return out


def _norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    dim = x.shape[-1]
    grouped = x if x.dim() == 3 else x.reshape(-1, 1, dim)
    num_rows = grouped.shape[0] * grouped.shape[1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = triton.next_power_of_2(dim)
    num_rows_each = max(1, _ENTRIES_PER_PROGRAM // width)
    rows.norm_kernel[(triton.cdiv(num_rows, num_rows_each),)](
        grouped,
        *grouped.stride()[:2],
        residual,
        weight,
        out,
        num_rows,
        eps,
        NUM_GROUPS=grouped.shape[1],
        DIM=dim,
        WIDTH=width,
        ROWS=num_rows_each,
        num_warps=min(16, max(4, width // 512)),
    )
    return out
