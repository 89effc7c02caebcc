from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from evenflow.execution.kernels import cpu_ops
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.kernels.torch_ops import TorchOps
from evenflow.execution.ops import Ops
from support.kernel_sets import KERNEL_SETS, kernel_set

ROW_COUNTS = [1, 2, 3, 7, 16, 33, 130]
DIMS = [1536, 576, 20, 7]

# An operation on the first n rows of fixed inputs.
Operation = Callable[[Ops, int], torch.Tensor]


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(130, *shape, generator=torch.Generator().manual_seed(seed))


def linear(ops: Ops, n: int, dim: int) -> torch.Tensor:
    weight = torch.cat([rows(dim, seed=1), rows(dim, seed=3)]) / dim**0.5
    return ops.linear([weight], rows(2, seed=2).flatten())(rows(dim)[:n])


def rms_norm(ops: Ops, n: int, dim: int) -> torch.Tensor:
    return ops.rms_norm(rows(dim)[:n], rows(dim, seed=1)[0], 1e-5)


def rms_norm_of_heads(ops: Ops, n: int, dim: int) -> torch.Tensor:
    return ops.rms_norm(rows(5, dim)[:n, 1:4], rows(dim, seed=1)[0], 1e-5)


def add_rms_norm(ops: Ops, n: int, dim: int) -> torch.Tensor:
    residual = rows(dim, seed=2)[:n].clone()
    out = ops.add_rms_norm(rows(dim)[:n], residual, rows(dim, seed=1)[0], 1e-5)
    return torch.cat([out, residual], dim=1)


def gated_silu(ops: Ops, n: int, dim: int) -> torch.Tensor:
    return ops.gated(10 * rows(2 * dim)[:n], "silu")


def gated_gelu(ops: Ops, n: int, dim: int) -> torch.Tensor:
    return ops.gated(10 * rows(2 * dim)[:n], "gelu_tanh")


@pytest.mark.parametrize(
    ("num_rows", "num_padded_rows"), [(1, 2), (2, 2), (32, 32), (33, 34), (129, 136), (2048, 2048)]
)
def test_linear_sends_few_numbers_of_rows(num_rows: int, num_padded_rows: int) -> None:
    assert cpu_ops._padded_rows(num_rows) == num_padded_rows


def test_linear_pads_by_a_sixteenth_at_most() -> None:
    counts = [cpu_ops._padded_rows(n) for n in range(2, 4097)]
    assert all(n <= padded <= n * 17 / 16 for n, padded in enumerate(counts, 2))
    assert len(set(counts)) == 31 + 7 * 16


OPERATIONS = [
    linear,
    rms_norm,
    rms_norm_of_heads,
    add_rms_norm,
    gated_silu,
    gated_gelu,
]


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# `linear` is made of no kernel of the sets.
CASES = [(linear, "numba"), *((op, name) for op in OPERATIONS[1:] for name in KERNEL_SETS)]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("operation", "kernels"), CASES)
def test_cpu_ops_equal_torch(
    operation: Callable[..., torch.Tensor], kernels: str, dim: int
) -> None:
    found = operation(CpuOps(kernel_set(kernels)), 33, dim)
    expected = operation(TorchOps(), 33, dim)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("operation", "kernels"), CASES)
def test_cpu_rows_have_the_same_bits_for_any_number_of_rows(
    operation: Callable[..., torch.Tensor], kernels: str, dim: int
) -> None:
    ops = CpuOps(kernel_set(kernels))
    whole = operation(ops, 130, dim)
    for n in ROW_COUNTS:
        assert torch.equal(operation(ops, n, dim), whole[:n])


@pytest.mark.parametrize(("operation", "kernels"), CASES)
def test_cpu_rows_have_the_same_bits_for_one_thread_and_two(
    operation: Callable[..., torch.Tensor], kernels: str, restored_threads: None
) -> None:
    ops = CpuOps(kernel_set(kernels))
    torch.set_num_threads(2)
    expected = operation(ops, 130, 1536)
    torch.set_num_threads(1)
    assert torch.equal(operation(ops, 130, 1536), expected)


@pytest.mark.parametrize("ops", [CpuOps(), TorchOps()])
def test_linear_never_writes_to_its_weight(ops: Ops) -> None:
    weight = rows(576)
    apply = ops.linear([weight])
    apply(rows(576, seed=1))
    assert torch.equal(weight, rows(576))


def test_linear_without_onednn_gives_rows_that_do_not_depend_on_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    whole = linear(CpuOps(), 130, 576)
    torch.testing.assert_close(whole, linear(TorchOps(), 130, 576), rtol=1e-5, atol=2e-5)
    for n in ROW_COUNTS:
        assert torch.equal(linear(CpuOps(), n, 576), whole[:n])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("kernels", KERNEL_SETS)
def test_gated_stays_finite_at_extreme_inputs(kernels: str, activation: cpu_ops.Activation) -> None:
    gate = torch.tensor([[-1e30, -100.0, -88.0, 0.0, 88.0, 100.0, 1e12, torch.nan]])
    gate_up = torch.cat([gate, torch.ones(1, 8)], dim=1)
    found = CpuOps(kernel_set(kernels)).gated(gate_up, activation)
    expected = TorchOps().gated(gate_up, activation)
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], equal_nan=True)
