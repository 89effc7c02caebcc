"""Row-wise kernels of `CpuOps`: normalise, rotate, gate. Each result row reads its own row only.

Knows: vectors (`simd`), argument words (`parallel`).
Does not know: tensors.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types

from evenflow.execution.kernels import simd
from evenflow.execution.kernels.parallel import FIRST_ARGUMENT, NEXT_TASK, Kernel
from evenflow.execution.kernels.simd import (
    FLOAT,
    Builder,
    Value,
    element,
    emitted,
    fma,
    load,
    read_double,
    read_word,
    splat,
    splat_constant,
    store,
    take_ticket,
)

ROWS_PER_TASK = 8
ARGUMENT = FIRST_ARGUMENT

# Arguments of all kernels: the number of rows, then what each kernel unpacks.
NORM_LAYOUT = "qqqqqqqqd"
ADD_NORM_LAYOUT = "qqqqqqqqd"
ROTATE_LAYOUT = "qqqqqqqqq"
GATE_LAYOUT = "qqqqq"


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


@emitted(types.void, types.int64, types.int64, types.int64, types.int64)
def _rotate_head(builder: Builder, x: Value, cos: Value, sin: Value, half: Value) -> None:
    """Turn each pair (x[i], x[i + half]) by its angle."""
    upper = element(builder, x, half)

    def turn(index: Value, rest: Value | None) -> None:
        where_a, where_b = element(builder, x, index), element(builder, upper, index)
        a, b = load(builder, where_a, rest), load(builder, where_b, rest)
        c = load(builder, element(builder, cos, index), rest)
        s = load(builder, element(builder, sin, index), rest)
        store(builder, fma(builder, a, c, builder.fneg(builder.fmul(b, s))), where_a, rest)
        store(builder, fma(builder, b, c, builder.fmul(a, s)), where_b, rest)

    simd.each_chunk(builder, half, turn)


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


@Kernel
def norm_kernel(words: int) -> None:
    """Normalise rows of `num_groups` vectors: x (rows, groups, dim) strided, out contiguous."""
    num_rows = read_word(words, ARGUMENT)
    x = read_word(words, ARGUMENT + 1)
    row_bytes = read_word(words, ARGUMENT + 2)
    group_bytes = read_word(words, ARGUMENT + 3)
    num_groups = read_word(words, ARGUMENT + 4)
    weight = read_word(words, ARGUMENT + 5)
    out = read_word(words, ARGUMENT + 6)
    dim = read_word(words, ARGUMENT + 7)
    eps = read_double(words, ARGUMENT + 8)
    while True:
        first = take_ticket(words, NEXT_TASK) * ROWS_PER_TASK
        if first >= num_rows:
            break
        for row in range(first, min(first + ROWS_PER_TASK, num_rows)):
            for group in range(num_groups):
                source = x + row * row_bytes + group * group_bytes
                target = out + (row * num_groups + group) * dim * 4
                _norm_row(source, 0, weight, target, dim, eps)


@Kernel
def add_norm_kernel(words: int) -> None:
    """Add x into residual and normalise the sum: x, residual (rows, dim), rows strided."""
    num_rows = read_word(words, ARGUMENT)
    x = read_word(words, ARGUMENT + 1)
    row_bytes = read_word(words, ARGUMENT + 2)
    residual = read_word(words, ARGUMENT + 3)
    residual_bytes = read_word(words, ARGUMENT + 4)
    weight = read_word(words, ARGUMENT + 5)
    out = read_word(words, ARGUMENT + 6)
    dim = read_word(words, ARGUMENT + 7)
    eps = read_double(words, ARGUMENT + 8)
    while True:
        first = take_ticket(words, NEXT_TASK) * ROWS_PER_TASK
        if first >= num_rows:
            break
        for row in range(first, min(first + ROWS_PER_TASK, num_rows)):
            total = residual + row * residual_bytes
            _norm_row(x + row * row_bytes, total, weight, out + row * dim * 4, dim, eps)


@Kernel
def rotate_kernel(words: int) -> None:
    """Rotate heads in place: x (rows, heads, dim) strided, cos and sin (rows, half) strided."""
    num_rows = read_word(words, ARGUMENT)
    x = read_word(words, ARGUMENT + 1)
    row_bytes = read_word(words, ARGUMENT + 2)
    head_bytes = read_word(words, ARGUMENT + 3)
    num_heads = read_word(words, ARGUMENT + 4)
    cos = read_word(words, ARGUMENT + 5)
    sin = read_word(words, ARGUMENT + 6)
    angle_bytes = read_word(words, ARGUMENT + 7)
    half = read_word(words, ARGUMENT + 8)
    while True:
        first = take_ticket(words, NEXT_TASK) * ROWS_PER_TASK
        if first >= num_rows:
            break
        for row in range(first, min(first + ROWS_PER_TASK, num_rows)):
            angle = row * angle_bytes
            for head in range(num_heads):
                _rotate_head(
                    x + row * row_bytes + head * head_bytes, cos + angle, sin + angle, half
                )


@Kernel
def silu_kernel(words: int) -> None:
    """Gate rows: gate_up (rows, 2 * width) with rows strided, out (rows, width)."""
    num_rows = read_word(words, ARGUMENT)
    gate = read_word(words, ARGUMENT + 1)
    row_bytes = read_word(words, ARGUMENT + 2)
    out = read_word(words, ARGUMENT + 3)
    width = read_word(words, ARGUMENT + 4)
    while True:
        row = take_ticket(words, NEXT_TASK)
        if row >= num_rows:
            break
        at = gate + row * row_bytes
        _silu_row(at, at + width * 4, out + row * width * 4, width)


@Kernel
def gelu_tanh_kernel(words: int) -> None:
    """Gate rows as `silu_kernel` does, with the other non-linearity."""
    num_rows = read_word(words, ARGUMENT)
    gate = read_word(words, ARGUMENT + 1)
    row_bytes = read_word(words, ARGUMENT + 2)
    out = read_word(words, ARGUMENT + 3)
    width = read_word(words, ARGUMENT + 4)
    while True:
        row = take_ticket(words, NEXT_TASK)
        if row >= num_rows:
            break
        at = gate + row * row_bytes
        _gelu_tanh_row(at, at + width * 4, out + row * width * 4, width)
