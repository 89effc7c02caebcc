"""The sets of CPU kernels that tests run over: numba's, and the C++ ones for each processor."""

from __future__ import annotations

from functools import cache

import pytest

from evenflow.execution.kernels.cpu_kernels import CpuKernels, portable_kernels
from evenflow.execution.kernels.native.library import ISAS, native_kernels

NATIVE_SETS = tuple(f"native-{isa}" for isa in ISAS)
KERNEL_SETS = ("numba", *NATIVE_SETS)


def kernel_set(name: str) -> CpuKernels:
    """Return a set of kernels; skip the test where this machine cannot run it."""
    kernels = _load(name)
    if kernels is None:
        pytest.skip(f"no {name} kernels on this machine")
    return kernels


@cache
def _load(name: str) -> CpuKernels | None:
    return portable_kernels() if name == "numba" else native_kernels(name.removeprefix("native-"))
