"""`Ops` for fp32 on the CPU: linears and kernels whose rows never depend on other rows.

fp32 weights are multiplied by oneDNN, weights as a file stores them by kernels of our own.

Invariant: row i of every result has the same bits for any number of rows and of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeGuard

import torch

from evenflow.core.errors import IntegrityError
from evenflow.execution.kernels import jobs
from evenflow.execution.kernels.cpu_kernels import CpuKernels, portable_kernels
from evenflow.execution.kernels.parallel import Arguments, ThreadTeam
from evenflow.execution.kernels.quantised import PackedLinear, Workspace, quantised_linear
from evenflow.execution.ops import Activation, Embedding, Linear, QuantisedRows, Weight

_SERIAL_BELOW = 16_384  # floats; under this much work, waking threads costs more than it gains
_FALLBACK_ROWS = 16
_ROW_STEPS = 32
_ACTIVATIONS = {"silu": jobs.SILU, "gelu_tanh": jobs.GELU_TANH}


class CpuOps:
    """Building blocks of a forward pass, fp32 on the CPU. One thread at a time may use it.

    Args:
        kernels: the portable ones by default, which take fp32 weights only.
        team: the threads to use; its own by default.
    """

    def __init__(self, kernels: CpuKernels | None = None, team: ThreadTeam | None = None) -> None:
        self._kernels = kernels or portable_kernels()
        self._team = team or ThreadTeam()
        quantised = self._kernels.quantised
        self._workspace = None if quantised is None else Workspace(quantised, self._team)
        self._norm = Arguments(jobs.NORM_LAYOUT)
        self._add_norm = Arguments(jobs.ADD_NORM_LAYOUT)
        self._gate = Arguments(jobs.GATE_LAYOUT)
        self._gather = Arguments(jobs.GATHER_LAYOUT)

    def linear(self, weights: Sequence[Weight], bias: torch.Tensor | None = None) -> Linear:
        """Return x -> x @ weight.T + bias (see `Ops.linear`)."""
        if _all_quantised(weights):
            return self._packed(weights, bias)
        if _all_fp32(weights):
            return _fp32_linear(weights[0] if len(weights) == 1 else torch.cat(weights), bias)
        sizes = [_out_features(weight) for weight in weights]
        biases = [None] * len(weights) if bias is None else torch.split(bias, sizes)
        parts = [self.linear([weight], b) for weight, b in zip(weights, biases, strict=True)]
        return lambda x: torch.cat([part(x) for part in parts], dim=1)

    def embedding(self, weight: Weight, factor: float = 1.0) -> Embedding:
        """Return ids -> weight[ids] * factor (see `Ops.embedding`)."""
        if isinstance(weight, QuantisedRows):
            return partial(self._packed([weight]).rows, factor=factor)
        return partial(self._rows, weight, factor)

    def vocabulary(self, weight: Weight, factor: float = 1.0) -> tuple[Embedding, Linear]:
        """Return both uses of one table (see `Ops.vocabulary`), which is packed only once."""
        if isinstance(weight, QuantisedRows):
            packed = self._packed([weight])
            return partial(packed.rows, factor=factor), packed
        return self.embedding(weight, factor), self.linear([weight])

    def _rows(self, table: torch.Tensor, factor: float, ids: torch.Tensor) -> torch.Tensor:
        ids = ids.contiguous()
        out = self._team.empty(ids.shape[0], table.shape[1])
        arguments = self._gather.pack(
            ids.shape[0],
            table.data_ptr(),
            4 * table.stride(0),
            ids.data_ptr(),
            out.data_ptr(),
            table.shape[1],
            factor,
        )
        self._team.run(self._kernels.gather, arguments, serial=_is_small(out))
        return out

    def _packed(
        self, weights: Sequence[QuantisedRows], bias: torch.Tensor | None = None
    ) -> PackedLinear:
        if self._workspace is None:
            raise IntegrityError("Stored weights came to kernels that do not take them")
        return quantised_linear(weights, bias, self._workspace)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Return x / sqrt(mean(x^2) + eps) * weight (see `Ops.rms_norm`)."""
        dim = x.shape[-1]
        rows = x if x.dim() == 3 else x.reshape(-1, 1, dim)
        out = self._team.empty(*x.shape)
        num_rows, num_groups = rows.shape[0], rows.shape[1]
        row_bytes, group_bytes = 4 * rows.stride(0), 4 * rows.stride(1)
        arguments = self._norm.pack(
            num_rows,
            rows.data_ptr(),
            row_bytes,
            group_bytes,
            num_groups,
            weight.data_ptr(),
            out.data_ptr(),
            dim,
            eps,
        )
        self._team.run(self._kernels.norm, arguments, serial=_is_small(x))
        return out

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Add x into `residual` and return the norm of the sum (see `Ops.add_rms_norm`)."""
        out = self._team.empty(*x.shape)
        arguments = self._add_norm.pack(
            x.shape[0],
            x.data_ptr(),
            4 * x.stride(0),
            residual.data_ptr(),
            4 * residual.stride(0),
            weight.data_ptr(),
            out.data_ptr(),
            x.shape[1],
            eps,
        )
        self._team.run(self._kernels.add_norm, arguments, serial=_is_small(x))
        return out

    def gated(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Return activation(gate) * up (see `Ops.gated`)."""
        num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = self._team.empty(num_rows, width)
        arguments = self._gate.pack(
            num_rows,
            gate_up.data_ptr(),
            4 * gate_up.stride(0),
            out.data_ptr(),
            width,
            _ACTIVATIONS[activation],
        )
        self._team.run(self._kernels.gate, arguments, serial=_is_small(out))
        return out


def _is_small(x: torch.Tensor) -> bool:
    return x.numel() < _SERIAL_BELOW


def _all_quantised(weights: Sequence[Weight]) -> TypeGuard[Sequence[QuantisedRows]]:
    return all(isinstance(weight, QuantisedRows) for weight in weights)


def _all_fp32(weights: Sequence[Weight]) -> TypeGuard[list[torch.Tensor]]:
    return all(isinstance(weight, torch.Tensor) for weight in weights)


def _out_features(weight: Weight) -> int:
    return (weight.rows if isinstance(weight, QuantisedRows) else weight).shape[0]


def _fp32_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return _onednn_linear(weight, bias)
    return _chunked_linear(weight, bias)


def _onednn_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """Multiply by a weight packed once for oneDNN.

    Its rows have the same bits for every number of rows but one: with AVX-512, a single long row
    (1,536 entries, not 576) is summed in another order. So one row is sent as two, and the first
    is kept. For each number of rows the library makes a kernel, which takes a millisecond and
    keeps more than half a megabyte for good, so only some numbers are ever sent.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)  # noqa: SLF001
    multiply = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001

    def apply(x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        num_padded_rows = _padded_rows(num_rows)
        if num_padded_rows > num_rows:
            padded = torch.empty((num_padded_rows, x.shape[1]))
            padded[:num_rows] = x
            padded[num_rows:].zero_()
            x = padded
        return multiply(x, packed, bias, "none", [], "")[:num_rows]  # type: ignore[no-any-return]

    return apply


def _padded_rows(num_rows: int) -> int:
    """Round up to 2, 3, ... 32, then to one of 16 numbers between successive powers of two."""
    step = max(1, (1 << (num_rows - 1).bit_length()) // _ROW_STEPS)
    return max(2, -(-num_rows // step) * step)


def _chunked_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """Multiply a fixed number of rows at a time, so that the library always takes the same path."""

    def apply(x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        padding = -num_rows % _FALLBACK_ROWS
        padded = torch.nn.functional.pad(x, (0, 0, 0, padding))
        chunks = [
            torch.nn.functional.linear(chunk, weight, bias)
            for chunk in torch.split(padded, _FALLBACK_ROWS)
        ]
        return torch.cat(chunks)[:num_rows]

    return apply
