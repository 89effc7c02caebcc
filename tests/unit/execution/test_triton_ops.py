"""Row-wise Triton kernels against the same formulas in fp64; interpreted without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from support.triton_interpreter import DEVICE

# isort: split
from evenflow.execution.kernels.torch_ops import TorchOps
from evenflow.execution.kernels.triton.triton_ops import TritonOps
from evenflow.execution.ops import Activation, Ops

# A sigmoid's power of e may be infinite, which numpy remarks on.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Relative: kernels compute in fp32 and round once."""
DIMS = [1536, 96, 7]
NUM_ROWS = 33

Operation = Callable[[Ops, torch.dtype, int, int], torch.Tensor]


def rows(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> torch.Tensor:
    numbers = torch.randn(NUM_ROWS, *shape, generator=torch.Generator().manual_seed(seed))
    return (scale * numbers).to(DEVICE, dtype)


def rms_norm(ops: Ops, dtype: torch.dtype, n: int, dim: int) -> torch.Tensor:
    return ops.rms_norm(rows(dim, dtype=dtype)[:n], rows(dim, seed=1)[0], 1e-5)


def rms_norm_of_heads(ops: Ops, dtype: torch.dtype, n: int, dim: int) -> torch.Tensor:
    return ops.rms_norm(rows(5, dim, dtype=dtype)[:n, 1:4], rows(dim, seed=1)[0], 1e-5)


def gated_silu(ops: Ops, dtype: torch.dtype, n: int, dim: int) -> torch.Tensor:
    return ops.gated(rows(2 * dim, dtype=dtype, scale=10.0)[:n], "silu")


def gated_gelu(ops: Ops, dtype: torch.dtype, n: int, dim: int) -> torch.Tensor:
    return ops.gated(rows(2 * dim, dtype=dtype, scale=10.0)[:n], "gelu_tanh")


OPERATIONS: list[Operation] = [rms_norm, rms_norm_of_heads, gated_silu, gated_gelu]


class ExactOps(TorchOps):
    """The formulas in fp64, on inputs rounded to another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return super().rms_norm(x.to(self.dtype).double(), weight.double(), eps)

    def gated(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        return super().gated(gate_up.to(self.dtype).double(), activation)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_triton_ops_equal_fp64(operation: Operation, dim: int, dtype: torch.dtype) -> None:
    found = operation(TritonOps(), dtype, 5, dim)
    exact = operation(ExactOps(dtype), torch.float64, 5, dim)
    assert found.dtype == dtype
    assert ((found.double() - exact).abs() <= 2 * TOLERANCE[dtype] * (exact.abs() + 1e-3)).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("kept", DTYPES.values(), ids=DTYPES.keys())
def test_triton_add_rms_norm_is_the_norm_of_the_sum_it_keeps(
    dtype: torch.dtype, kept: torch.dtype
) -> None:
    x, residual, weight = rows(96, dtype=dtype), rows(96, seed=2, dtype=kept), rows(96, seed=1)[0]
    expected = (x.float() + residual.float()).to(kept)
    found = TritonOps().add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, expected)
    exact = TorchOps().rms_norm(expected.double(), weight.double(), 1e-5)
    torch.testing.assert_close(found.double(), exact, rtol=2 * TOLERANCE[dtype], atol=1e-6)
    assert found.dtype == dtype


@pytest.mark.parametrize("dim", [1536, 96])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_triton_rows_have_the_same_bits_for_any_number_of_rows(
    operation: Operation, dim: int
) -> None:
    whole = operation(TritonOps(), torch.float32, NUM_ROWS, dim)
    for n in (1, 2, 16):
        assert torch.equal(operation(TritonOps(), torch.float32, n, dim), whole[:n])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_triton_gated_stays_finite_at_extreme_inputs(activation: Activation) -> None:
    gate = torch.tensor([[-1e30, -100.0, -88.0, 0.0, 88.0, 100.0, 1e12, torch.nan]])
    gate_up = torch.cat([gate, torch.ones(1, 8)], dim=1).to(DEVICE)
    found, expected = TritonOps().gated(gate_up, activation), TorchOps().gated(gate_up, activation)
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], equal_nan=True)
