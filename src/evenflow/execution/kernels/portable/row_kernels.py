"""Row-wise kernels of `CpuOps`: normalise, gate, gather. Each reads its own row only.

Knows: vectors (`simd`), argument words (`parallel`).
Does not know: tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import types

from evenflow.execution.kernels.jobs import SILU
from evenflow.execution.kernels.parallel import FIRST_ARGUMENT, NEXT_TASK
from evenflow.execution.kernels.portable import simd
from evenflow.execution.kernels.portable.kernel import NumbaKernel
from evenflow.execution.kernels.portable.simd import (
    FLOAT,
    FLOAT_BYTES,
    Builder,
    Value,
    element,
    emitted,
    fma,
    load,
    read_double,
    read_float,
    read_word,
    splat,
    splat_constant,
    store,
    take_ticket,
    words_reader,
    write_float,
)

ROWS_PER_TASK = 8
_read_six, _read_eight = words_reader(6), words_reader(8)


@emitted(types.void, types.int64, types.int64, types.int64, types.int64, types.int64, types.float64)
def _norm_row(
    builder: Builder,
    x: Value,
    residual: Value,
    weight: Value,
    out: Value,
    dim: Value,
    eps: Value,
) -> None:
    """Set out = norm(x + residual) * weight, leaving the sum in residual unless that is 0."""
    total = simd.variable(builder, splat_constant(0.0))
    has_residual = builder.icmp_signed("!=", residual, simd.word(0))

    def square(index: Value, rest: Value | None) -> None:
        value = load(builder, element(builder, x, index), rest)
        builder.store(fma(builder, value, value, builder.load(total)), total)

    def add_and_square(index: Value, rest: Value | None) -> None:
        where = element(builder, residual, index)
        value = load(builder, element(builder, x, index), rest)
        value = builder.fadd(value, load(builder, where, rest))
        store(builder, value, where, rest)
        builder.store(fma(builder, value, value, builder.load(total)), total)

    with builder.if_else(has_residual) as (then, otherwise):
        with then:
            simd.each_chunk(builder, dim, add_and_square)
        with otherwise:
            simd.each_chunk(builder, dim, square)

    source = builder.select(has_residual, residual, x)
    mean = builder.fdiv(
        simd.fold(builder, builder.load(total), simd.add), builder.sitofp(dim, FLOAT)
    )
    root = simd.call(
        builder, "llvm.sqrt.f32", FLOAT, builder.fadd(mean, builder.fptrunc(eps, FLOAT))
    )
    factor = splat(builder, builder.fdiv(ir.Constant(FLOAT, 1.0), root))

    def scale(index: Value, rest: Value | None) -> None:
        value = builder.fmul(load(builder, element(builder, source, index), rest), factor)
        value = builder.fmul(value, load(builder, element(builder, weight, index), rest))
        store(builder, value, element(builder, out, index), rest)

    simd.each_chunk(builder, dim, scale)


def _silu(builder: Builder, x: Value) -> Value:
    """Return x / (1 + e^-x)."""
    decay = simd.exp(builder, builder.fneg(x))
    return builder.fdiv(x, builder.fadd(splat_constant(1.0), decay))


def _gelu_tanh(builder: Builder, x: Value) -> Value:
    """Return x (1 + tanh u) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    cube = builder.fmul(builder.fmul(x, x), x)
    inner = fma(builder, splat_constant(0.044715), cube, x)
    decay = simd.exp(builder, builder.fmul(inner, splat_constant(-1.5957691216057308)))
    return builder.fdiv(x, builder.fadd(splat_constant(1.0), decay))


def _emit_gate(
    activation: Callable[[Builder, Value], Value],
    builder: Builder,
    gate: Value,
    up: Value,
    out: Value,
    count: Value,
) -> None:
    def apply(index: Value, rest: Value | None) -> None:
        value = activation(builder, load(builder, element(builder, gate, index), rest))
        value = builder.fmul(value, load(builder, element(builder, up, index), rest))
        store(builder, value, element(builder, out, index), rest)

    simd.each_chunk(builder, count, apply)


_GATE_TYPES = (types.void, types.int64, types.int64, types.int64, types.int64)


@emitted(*_GATE_TYPES)
def _silu_row(*arguments: Value) -> None:
    _emit_gate(_silu, *arguments)


@emitted(*_GATE_TYPES)
def _gelu_tanh_row(*arguments: Value) -> None:
    _emit_gate(_gelu_tanh, *arguments)


@NumbaKernel
def norm_kernel(words: int) -> None:
    """Normalise the vectors of x (rows, groups, dim), strided, into a contiguous out."""
    (num_rows, x, row_bytes, group_bytes, num_groups, weight, out, dim) = _read_eight(
        words + 8 * FIRST_ARGUMENT
    )
    eps = read_double(words, FIRST_ARGUMENT + 8)
    while True:
        first = take_ticket(words, NEXT_TASK) * ROWS_PER_TASK
        if first >= num_rows:
            break
        for row in range(first, min(first + ROWS_PER_TASK, num_rows)):
            for group in range(num_groups):
                source = x + row * row_bytes + group * group_bytes
                target = out + (row * num_groups + group) * dim * FLOAT_BYTES
                _norm_row(source, 0, weight, target, dim, eps)


@NumbaKernel
def add_norm_kernel(words: int) -> None:
    """Add x into residual, both (rows, dim) with rows strided, and normalise the sum."""
    (num_rows, x, row_bytes, residual, residual_bytes, weight, out, dim) = _read_eight(
        words + 8 * FIRST_ARGUMENT
    )
    eps = read_double(words, FIRST_ARGUMENT + 8)
    while True:
        first = take_ticket(words, NEXT_TASK) * ROWS_PER_TASK
        if first >= num_rows:
            break
        for row in range(first, min(first + ROWS_PER_TASK, num_rows)):
            total = residual + row * residual_bytes
            target = out + row * dim * FLOAT_BYTES
            _norm_row(x + row * row_bytes, total, weight, target, dim, eps)


@NumbaKernel
def gate_kernel(words: int) -> None:
    """Gate the rows of gate_up (rows, 2 * width), rows strided, into a contiguous out."""
    (num_rows, gate, row_bytes, out, width, activation) = _read_six(words + 8 * FIRST_ARGUMENT)
    while True:
        row = take_ticket(words, NEXT_TASK)
        if row >= num_rows:
            break
        source = gate + row * row_bytes
        target = out + row * width * FLOAT_BYTES
        if activation == SILU:
            _silu_row(source, source + width * FLOAT_BYTES, target, width)
        else:
            _gelu_tanh_row(source, source + width * FLOAT_BYTES, target, width)


@NumbaKernel
def gather_kernel(words: int) -> None:
    """Copy the rows of a table that ids name, scaled, into a contiguous out."""
    (num_rows, table, row_bytes, ids, out, dim) = _read_six(words + 8 * FIRST_ARGUMENT)
    scale = np.float32(read_double(words, FIRST_ARGUMENT + 6))
    while True:
        first = take_ticket(words, NEXT_TASK) * ROWS_PER_TASK
        if first >= num_rows:
            break
        for row in range(first, min(first + ROWS_PER_TASK, num_rows)):
            source = table + read_word(ids, row) * row_bytes
            for i in range(dim):
                write_float(out, row * dim + i, read_float(source, i) * scale)
