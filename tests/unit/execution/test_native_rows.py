"""What `test_cpu_ops` does not see: accuracy against float64, and memory beside the rows."""

from __future__ import annotations

import numpy as np
import pytest

from evenflow.execution.kernels import jobs
from evenflow.execution.kernels.parallel import Arguments, Kernel, ThreadTeam
from support.kernel_sets import KERNEL_SETS, kernel_set

EPSILON = 2.0**-24  # half an ulp, relative to 1
DIMS = [1, 3, 4, 7, 8, 15, 16, 17, 31, 63, 64, 65, 127, 576, 1536]
GUARD = 12345.0


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(kernel: Kernel, layout: str, *words: float) -> None:
    ThreadTeam().run(kernel, Arguments(layout).pack(*words), serial=True)


def normed(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight.astype(np.float64)


def silu(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / (1 + np.exp(-x))


def norm_tolerance(dim: int) -> float:
    """Relative: a chain of sums of dim / 4 at most, halved by the root, and six roundings."""
    return (dim / 8 + 6) * EPSILON


def gate(name: str, gates: np.ndarray, ups: np.ndarray, activation: int) -> np.ndarray:
    gate_up = np.concatenate([gates, ups], axis=1)
    out = np.empty_like(gates)
    run(
        kernel_set(name).gate,
        jobs.GATE_LAYOUT,
        *(len(gates), gate_up.ctypes.data, gate_up.strides[0], out.ctypes.data, gates.shape[1]),
        activation,
    )
    return out


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", KERNEL_SETS)
def test_norm_equals_float64_and_writes_its_rows_only(name: str, dim: int) -> None:
    x, weight = random(3, 5, dim + 2), random(dim, seed=1)
    out = np.full(3 * 2 * dim + 16, GUARD, np.float32)
    words = (3, x[:, 1:].ctypes.data, *x.strides[:2], 2, weight.ctypes.data, out.ctypes.data, dim)
    run(kernel_set(name).norm, jobs.NORM_LAYOUT, *words, 1e-5)
    expected = normed(x[:, 1:3, :dim], weight, 1e-5)
    np.testing.assert_allclose(out[:-16].reshape(3, 2, dim), expected, rtol=norm_tolerance(dim))
    assert (out[-16:] == GUARD).all()


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", KERNEL_SETS)
def test_add_norm_equals_float64_and_writes_its_rows_only(name: str, dim: int) -> None:
    x, before, weight = random(3, dim + 2), random(3, dim + 3, seed=2), random(dim, seed=1)
    total = before.copy()
    out = np.full(3 * dim + 16, GUARD, np.float32)
    words = (3, x.ctypes.data, x.strides[0], total.ctypes.data, total.strides[0])
    words = (*words, weight.ctypes.data, out.ctypes.data, dim)
    run(kernel_set(name).add_norm, jobs.ADD_NORM_LAYOUT, *words, 1e-5)
    assert np.array_equal(total[:, :dim], before[:, :dim] + x[:, :dim])
    assert np.array_equal(total[:, dim:], before[:, dim:])
    expected = normed(total[:, :dim], weight, 1e-5)
    np.testing.assert_allclose(out[:-16].reshape(3, dim), expected, rtol=norm_tolerance(dim))
    assert (out[-16:] == GUARD).all()


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_silu_is_within_four_ulp(name: str) -> None:
    """e^-x within 2 ulp, then a sum and a quotient of half an ulp each."""
    x = np.linspace(-80, 80, 1_000_003).astype(np.float32)[None]
    found = gate(name, x, np.ones_like(x), jobs.SILU)
    ulp = np.spacing(np.abs(silu(x)).astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(found - silu(x)) / ulp) <= 4


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_gelu_tanh_equals_float64(name: str) -> None:
    """Rounding u = 1.6 (x + 0.04 x^3) some four times moves e^-u by so many parts of u."""
    x = np.linspace(-9, 9, 1_000_003).astype(np.float32)[None]
    found = gate(name, x, np.ones_like(x), jobs.GELU_TANH)
    wide = x.astype(np.float64)
    u = 1.5957691216057308 * (wide + 0.044715 * wide**3)
    expected = wide / (1 + np.exp(-u))
    assert (np.abs(found - expected) <= (8 + 5 * np.abs(u)) * EPSILON * np.abs(expected)).all()


@pytest.mark.parametrize("activation", [jobs.SILU, jobs.GELU_TANH])
@pytest.mark.parametrize("width", DIMS)
@pytest.mark.parametrize("name", KERNEL_SETS)
def test_gate_writes_its_rows_only(name: str, width: int, activation: int) -> None:
    gate_up = random(3, 2 * width + 5)
    out = np.full(3 * width + 16, GUARD, np.float32)
    words = (3, gate_up.ctypes.data, gate_up.strides[0], out.ctypes.data, width, activation)
    run(kernel_set(name).gate, jobs.GATE_LAYOUT, *words)
    gates, ups = gate_up[:, :width].copy(), gate_up[:, width : 2 * width].copy()
    lone = gate(name, gates.reshape(1, -1), ups.reshape(1, -1), activation)
    assert np.array_equal(out[:-16], lone.reshape(-1))
    assert (out[-16:] == GUARD).all()
