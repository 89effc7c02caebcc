"""Vector code for numba kernels: LLVM instructions on eight floats at a time.

Left to itself, numba vectorises a sum only when it may reorder it, and then the order depends on
the code around the loop. Kernels that must give the same bits everywhere are therefore built from
the explicit vectors here: no instruction is reordered, fused or split, on any processor.

Memory is addressed by plain int64 addresses, as kernels receive them (see `parallel`).
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
FLOAT_BYTES = 4

FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
WORD = ir.IntType(64)
_BITS = ir.VectorType(ir.IntType(32), LANES)

Builder: TypeAlias = ir.IRBuilder
Value: TypeAlias = ir.Value


def emitted(result: types.Type, *parameters: types.Type) -> Callable[[Callable[..., Any]], Any]:
    """Make a function that emits instructions callable from numba code.

    Args:
        result: numba type of the value that the emitted code computes.
        parameters: numba types of the arguments, handed to the function as LLVM values.
    """

    def wrap(emit: Callable[..., Value | None]) -> Any:
        def codegen(context: Any, builder: Builder, _: Any, arguments: Sequence[Value]) -> Value:
            value = emit(builder, *arguments)
            return context.get_dummy_value() if value is None else value

        def typer(_: Any, *__: Any) -> tuple[Any, Callable[..., Value]]:
            return result(*parameters), codegen

        typer.__name__ = emit.__name__
        names = ["context", *(f"argument_{i}" for i in range(len(parameters)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        typer.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
        return intrinsic(typer)

    return wrap


# Emitting: helpers that add instructions at the builder's position.


def word(value: int) -> Value:
    """Return an int64 constant."""
    return ir.Constant(WORD, value)


def splat_constant(value: float) -> Value:
    """Return a vector constant whose lanes are all `value`, rounded to float32."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return ir.Constant(VECTOR, [ir.Constant(FLOAT, rounded)] * LANES)


def splat(builder: Builder, value: Value) -> Value:
    """Return a vector whose lanes are all `value`."""
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, word(0))
    return shuffle(builder, first, first, [0] * LANES)


def shuffle(builder: Builder, a: Value, b: Value, lanes: Sequence[int]) -> Value:
    """Return the chosen lanes of a (numbered first) and b."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
    return builder.shuffle_vector(a, b, mask)


def pointer(builder: Builder, address: Value, kind: ir.Type) -> Value:
    """Return an address as a pointer to `kind`."""
    return builder.inttoptr(address, ir.PointerType(kind))


def element(builder: Builder, address: Value, index: Value) -> Value:
    """Return the address of float `index` of an array."""
    return builder.add(address, builder.shl(index, word(2)))


def variable(builder: Builder, value: Value) -> Value:
    """Return the place of a local variable that begins as `value`."""
    place = cgutils.alloca_once(builder, value.type)  # type: ignore[no-untyped-call]
    builder.store(value, place)
    return place


def call(builder: Builder, name: str, result: ir.Type, *arguments: Value) -> Value:
    """Call one of LLVM's intrinsic functions."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, signature, name)  # type: ignore[no-untyped-call]
    return builder.call(function, arguments)


def load(builder: Builder, address: Value, count: Value | None = None) -> Value:
    """Return a vector from unaligned memory; with a count, only that many lanes, the others 0."""
    if count is None:
        return builder.load(pointer(builder, address, VECTOR), align=FLOAT_BYTES)
    lanes = variable(builder, splat_constant(0.0))
    _copy(builder, address, builder.ptrtoint(lanes, WORD), count)
    return builder.load(lanes)


def store(builder: Builder, value: Value, address: Value, count: Value | None = None) -> None:
    """Write a vector to unaligned memory; with a count, only its first lanes."""
    if count is None:
        builder.store(value, pointer(builder, address, value.type), align=FLOAT_BYTES)
        return
    lanes = variable(builder, value)
    _copy(builder, builder.ptrtoint(lanes, WORD), address, count)


def _copy(builder: Builder, source: Value, destination: Value, count: Value) -> None:
    with cgutils.for_range(builder, count) as loop:
        value = builder.load(pointer(builder, element(builder, source, loop.index), FLOAT))
        builder.store(value, pointer(builder, element(builder, destination, loop.index), FLOAT))


def each_chunk(
    builder: Builder, count: Value, body: Callable[[Value, Value | None], None], lanes: int = LANES
) -> Value:
    """Emit a loop over `count` floats, `lanes` at a time; return how many it covered.

    Args:
        builder: where to emit.
        count: number of floats.
        body: called with the index of a chunk's first float and, for the partial chunk at the end,
            the number of floats in it. Wider strides than one vector have no partial chunk.
        lanes: stride of the loop.
    """
    covered = builder.mul(builder.udiv(count, word(lanes)), word(lanes))
    with cgutils.for_range_slice(builder, word(0), covered, word(lanes)) as (index, _):
        body(index, None)
    if lanes == LANES:
        rest = builder.sub(count, covered)
        with builder.if_then(builder.icmp_signed(">", rest, word(0))):
            body(covered, rest)
    return covered


def fma(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """Return a * b + c, rounded once."""
    return call(builder, "llvm.fma.v8f32", VECTOR, a, b, c)


def maximum(builder: Builder, a: Value, b: Value) -> Value:
    """Return the larger of a and b, lane by lane; b where a is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def fold(
    builder: Builder, value: Value, combine: Callable[[Builder, Value, Value], Value]
) -> Value:
    """Return the combination of a vector's lanes, in a fixed tree."""
    for step in (4, 2, 1):
        value = combine(
            builder, value, shuffle(builder, value, value, [i ^ step for i in range(LANES)])
        )
    return builder.extract_element(value, word(0))


def add(builder: Builder, a: Value, b: Value) -> Value:
    """Return a + b."""
    return builder.fadd(a, b)


def exp(builder: Builder, x: Value) -> Value:
    """Return e^x within 2 ulp for x in [-87.3, 88.3], 0 below, e^88.3 above, NaN for NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor series to the seventh power (error
    below 2^-27). Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    """
    rounder = splat_constant(12582912.0)
    low, high = splat_constant(-87.3), splat_constant(88.3)
    clamped = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    shifted = fma(builder, clamped, splat_constant(1.4426950408889634), rounder)
    n = builder.fsub(shifted, rounder)
    r = fma(builder, n, splat_constant(-0.693359375), clamped)
    r = fma(builder, n, splat_constant(2.12194440e-4), r)
    series = splat_constant(1 / 5040)
    for factorial in (720, 120, 24, 6, 2, 1, 1):
        series = fma(builder, series, r, splat_constant(1 / factorial))
    exponent = builder.add(builder.bitcast(shifted, _BITS), ir.Constant(_BITS, [127] * LANES))
    power = builder.bitcast(builder.shl(exponent, ir.Constant(_BITS, [23] * LANES)), VECTOR)
    tiny = builder.fcmp_ordered("<", x, low)
    return builder.select(tiny, splat_constant(0.0), builder.fmul(series, power))


# Callable from numba code: single words of memory.


@emitted(types.int64, types.int64, types.int64)
def read_word(builder: Builder, address: Value, index: Value) -> Value:
    """Return int64 `index` of an array."""
    where = builder.add(address, builder.shl(index, word(3)))
    return builder.load(pointer(builder, where, WORD))


def words_reader(count: int) -> Any:
    """Make a function that returns `count` int64 words from an address, as a tuple."""

    @emitted(types.UniTuple(types.int64, count), types.int64)  # type: ignore[no-untyped-call]
    def read_words(builder: Builder, address: Value) -> Value:
        first = pointer(builder, address, ir.ArrayType(WORD, count))
        return builder.load(first)

    return read_words


@emitted(types.void, types.int64, types.int64, types.int64)
def write_word(builder: Builder, address: Value, index: Value, value: Value) -> None:
    """Set int64 `index` of an array."""
    where = builder.add(address, builder.shl(index, word(3)))
    builder.store(value, pointer(builder, where, WORD))


@emitted(types.int64, types.int64, types.int64)
def read_int(builder: Builder, address: Value, index: Value) -> Value:
    """Return int32 `index` of an array, widened."""
    where = pointer(builder, element(builder, address, index), ir.IntType(32))
    return builder.sext(builder.load(where), WORD)


@emitted(types.float32, types.int64, types.int64)
def read_float(builder: Builder, address: Value, index: Value) -> Value:
    """Return float32 `index` of an array."""
    return builder.load(pointer(builder, element(builder, address, index), FLOAT))


@emitted(types.void, types.int64, types.int64, types.float32)
def write_float(builder: Builder, address: Value, index: Value, value: Value) -> None:
    """Set float32 `index` of an array."""
    builder.store(value, pointer(builder, element(builder, address, index), FLOAT))


@emitted(types.float64, types.int64, types.int64)
def read_double(builder: Builder, address: Value, index: Value) -> Value:
    """Return float64 `index` of an array."""
    where = builder.add(address, builder.shl(index, word(3)))
    return builder.load(pointer(builder, where, ir.DoubleType()))


@emitted(types.int64, types.int64, types.int64)
def take_ticket(builder: Builder, address: Value, index: Value) -> Value:
    """Atomically add 1 to int64 `index` of an array and return what it was."""
    where = builder.add(address, builder.shl(index, word(3)))
    return builder.atomic_rmw("add", pointer(builder, where, WORD), word(1), "seq_cst")


@emitted(types.void, types.int64, types.int64, types.int64)
def copy_floats(builder: Builder, destination: Value, source: Value, count: Value) -> None:
    """Copy `count` floats."""

    def copy(index: Value, rest: Value | None) -> None:
        value = load(builder, element(builder, source, index), rest)
        store(builder, value, element(builder, destination, index), rest)

    each_chunk(builder, count, copy)
