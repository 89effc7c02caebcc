from __future__ import annotations

import numpy as np
from numba import types

from evenflow.execution.kernels.parallel import FIRST_ARGUMENT, Arguments, ThreadTeam
from evenflow.execution.kernels.portable import simd
from evenflow.execution.kernels.portable.kernel import NumbaKernel
from evenflow.execution.kernels.portable.simd import (
    Builder,
    Value,
    element,
    emitted,
    load,
    read_word,
    store,
)


@emitted(types.void, types.int64, types.int64)
def _exp_all(builder: Builder, values: Value, count: Value) -> None:
    def apply(index: Value, rest: Value | None) -> None:
        where = element(builder, values, index)
        store(builder, simd.exp(builder, load(builder, where, rest)), where, rest)

    simd.each_chunk(builder, count, apply)


def _exp_body(words: int) -> None:
    _exp_all(read_word(words, FIRST_ARGUMENT), read_word(words, FIRST_ARGUMENT + 1))


exp_kernel = NumbaKernel(_exp_body)


def exp(values: np.ndarray) -> np.ndarray:
    """Return e^x by the vector code, on float32."""
    result = values.astype(np.float32)
    words = Arguments("qq").pack(result.ctypes.data, result.size)
    ThreadTeam().run(exp_kernel, words, serial=True)
    return result


def test_exp_is_within_two_ulp() -> None:
    x = np.linspace(-87.2, 88.2, 1_000_003).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(exp(x) - exact) / ulp) <= 2


def test_exp_at_the_ends_of_its_range() -> None:
    found = exp(np.array([-np.inf, -1e30, -90.0, 0.0, -0.0, np.nan, 1e30, np.inf, 1.0]))
    assert np.array_equal(found[:5], np.array([0, 0, 0, 1, 1], np.float32))
    assert np.isnan(found[5])
    assert np.isfinite(found[6:8]).all()


def test_exp_of_a_partial_chunk_leaves_the_memory_behind_it_alone() -> None:
    memory = np.zeros(16, np.float32)
    words = Arguments("qq").pack(memory.ctypes.data, 11)
    ThreadTeam().run(exp_kernel, words, serial=True)
    assert np.array_equal(memory, np.array([1] * 11 + [0] * 5, np.float32))
