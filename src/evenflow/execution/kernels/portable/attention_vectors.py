"""The inner loops of CPU attention, for one to four query rows against a run of keys.

A score is always summed in the same tree over the head dimension, and an output entry always adds
its keys in ascending order. So a row's bits do not depend on how many rows are worked on together,
nor on how a run of keys is cut in two.

Knows: vectors (`simd`).
Does not know: blocks, requests, masks; callers name keys by byte offset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from evenflow.execution.kernels.portable import simd
from evenflow.execution.kernels.portable.simd import (
    FLOAT,
    LANES,
    WORD,
    Builder,
    Value,
    each_chunk,
    element,
    emitted,
    fma,
    load,
    pointer,
    shuffle,
    splat,
    splat_constant,
    store,
    variable,
    word,
)

MAX_ROWS = 4  # query rows worked on together
KEYS = 4  # keys scored together
PREFETCH_KEYS = 32  # how far ahead keys and values are asked for

# Vectors of the output held in registers per row, so that rows x vectors <= 16.
_VECTORS_PER_PASS = {1: 8, 2: 4, 3: 4, 4: 4}


def _accumulator(builder: Builder) -> Value:
    return variable(builder, splat_constant(0.0))


def _add_product(builder: Builder, place: Value, a: Value, b: Value) -> None:
    builder.store(fma(builder, a, b, builder.load(place)), place)


def _word_at(builder: Builder, address: Value, index: int) -> Value:
    return builder.load(pointer(builder, builder.add(address, word(8 * index)), WORD))


def _prefetch(builder: Builder, address: Value, count: Value) -> None:
    """Ask for the cache lines of `count` floats; any address is allowed.

    The second-level cache is asked: it keeps more requests under way than the first.
    """
    flags = [ir.Constant(ir.IntType(32), flag) for flag in (0, 2, 1)]  # read, level, data
    with cgutils.for_range_slice(builder, word(0), count, word(16)) as (index, _):
        where = pointer(builder, element(builder, address, index), ir.IntType(8))
        simd.call(builder, "llvm.prefetch.p0", ir.VoidType(), where, *flags)


def _sum_lanes_of_four(builder: Builder, vectors: list[Value]) -> Value:
    """Return the four sums over the lanes of four vectors, in one tree: neighbours first."""

    def pair(a: Value, b: Value) -> Value:
        even = shuffle(builder, a, b, [0, 2, 8, 10, 4, 6, 12, 14])
        odd = shuffle(builder, a, b, [1, 3, 9, 11, 5, 7, 13, 15])
        return builder.fadd(even, odd)

    quarters = pair(pair(vectors[0], vectors[1]), pair(vectors[2], vectors[3]))
    low = shuffle(builder, quarters, quarters, [0, 1, 2, 3])
    high = shuffle(builder, quarters, quarters, [4, 5, 6, 7])
    return builder.fadd(low, high)


def _score_keys(num_rows: int) -> Any:
    """Make score(queries, offsets, keys, out, out_bytes, head_dim, scale).

    It sets out[row][0:4] = scale * (query[row] . key[0:4]), where `queries` lists row addresses,
    `offsets` byte offsets from `keys`, and rows of `out` are `out_bytes` apart.
    """

    def emit(
        builder: Builder,
        queries: Value,
        offsets: Value,
        keys: Value,
        out: Value,
        out_bytes: Value,
        head_dim: Value,
        scale: Value,
    ) -> None:
        query = [_word_at(builder, queries, row) for row in range(num_rows)]
        key = [builder.add(keys, _word_at(builder, offsets, i)) for i in range(KEYS)]
        for i in range(KEYS):
            ahead = builder.add(keys, _word_at(builder, offsets, PREFETCH_KEYS + i))
            _prefetch(builder, ahead, head_dim)
        sums = [[_accumulator(builder) for _ in range(KEYS)] for _ in range(num_rows)]

        def multiply(index: Value, rest: Value | None) -> None:
            rows = [load(builder, element(builder, address, index), rest) for address in query]
            for i in range(KEYS):
                entries = load(builder, element(builder, key[i], index), rest)
                for row in range(num_rows):
                    _add_product(builder, sums[row][i], rows[row], entries)

        each_chunk(builder, head_dim, multiply)
        factor = splat(builder, scale)
        factor = shuffle(builder, factor, factor, list(range(KEYS)))
        for row in range(num_rows):
            scores = _sum_lanes_of_four(builder, [builder.load(place) for place in sums[row]])
            where = builder.add(out, builder.mul(word(row), out_bytes))
            store(builder, builder.fmul(scores, factor), where)

    return emitted(types.void, *[types.int64] * 6, types.float32)(emit)


def _add_values(num_rows: int) -> Any:
    """Make add(out, out_bytes, weights, weight_bytes, offsets, values, num_keys, head_dim).

    It adds weights[row][i] * value[i] to out[row] for each key i in ascending order.
    """

    def emit(
        builder: Builder,
        out: Value,
        out_bytes: Value,
        weights: Value,
        weight_bytes: Value,
        offsets: Value,
        values: Value,
        num_keys: Value,
        head_dim: Value,
    ) -> None:
        def add_columns(first: Value, rest: Value | None, num_vectors: int) -> None:
            places: list[list[tuple[Value, Value]]] = []
            for row in range(num_rows):
                start = element(builder, builder.add(out, builder.mul(word(row), out_bytes)), first)
                addresses = [builder.add(start, word(4 * LANES * i)) for i in range(num_vectors)]
                places.append([(address, _accumulator(builder)) for address in addresses])
                for address, place in places[-1]:
                    builder.store(load(builder, address, rest), place)
            columns = element(builder, values, first)
            with cgutils.for_range(builder, num_keys) as loop:
                offset = builder.add(offsets, builder.shl(loop.index, word(3)))
                source = builder.add(columns, builder.load(pointer(builder, offset, WORD)))
                ahead = builder.add(columns, _word_at(builder, offset, PREFETCH_KEYS))
                _prefetch(builder, ahead, word(LANES * num_vectors))
                entries = [
                    load(builder, builder.add(source, word(4 * LANES * i)), rest)
                    for i in range(num_vectors)
                ]
                for row in range(num_rows):
                    start = builder.add(weights, builder.mul(word(row), weight_bytes))
                    where = pointer(builder, element(builder, start, loop.index), FLOAT)
                    weight = splat(builder, builder.load(where))
                    for (_, place), entry in zip(places[row], entries, strict=True):
                        _add_product(builder, place, weight, entry)
            for address, place in (pair for row in places for pair in row):
                store(builder, builder.load(place), address, rest)

        wide = _VECTORS_PER_PASS[num_rows]
        covered = each_chunk(
            builder, head_dim, lambda first, rest: add_columns(first, rest, wide), wide * LANES
        )
        each_chunk(
            builder,
            builder.sub(head_dim, covered),
            lambda first, rest: add_columns(builder.add(covered, first), rest, 1),
        )

    return emitted(types.void, *[types.int64] * 8)(emit)


score_1, score_2, score_3, score_4 = (_score_keys(rows) for rows in range(1, MAX_ROWS + 1))
add_1, add_2, add_3, add_4 = (_add_values(rows) for rows in range(1, MAX_ROWS + 1))


def _reduce(
    builder: Builder,
    address: Value,
    count: Value,
    start: float,
    step: Callable[[Value, Value], Value],
    combine: Callable[[Builder, Value, Value], Value],
) -> Value:
    """Run `step` over an array of whole vectors and combine the lanes of the last result."""
    state = variable(builder, splat_constant(start))
    with cgutils.for_range_slice(builder, word(0), count, word(LANES)) as (index, _):
        builder.store(step(element(builder, address, index), builder.load(state)), state)
    return simd.fold(builder, builder.load(state), combine)


@emitted(types.float32, types.int64, types.int64)
def largest(builder: Builder, scores: Value, count: Value) -> Value:
    """Return the maximum of `count` scores, a multiple of eight."""
    return _reduce(
        builder,
        scores,
        count,
        float("-inf"),
        lambda address, state: simd.maximum(builder, load(builder, address), state),
        simd.maximum,
    )


@emitted(types.float32, types.int64, types.int64, types.float32)
def exponentiate(builder: Builder, scores: Value, count: Value, peak: Value) -> Value:
    """Replace `count` scores s, a multiple of eight, by e^(s - peak) and return their sum."""
    peaks = splat(builder, peak)

    def step(address: Value, total: Value) -> Value:
        weights = simd.exp(builder, builder.fsub(load(builder, address), peaks))
        store(builder, weights, address)
        return builder.fadd(total, weights)

    return _reduce(builder, scores, count, 0.0, step, simd.add)


@emitted(types.float32, types.float32)
def exp_scalar(builder: Builder, x: Value) -> Value:
    """Return e^x."""
    return builder.extract_element(simd.exp(builder, splat(builder, x)), word(0))


@emitted(types.void, types.int64, types.int64, types.float32, types.float32, types.int64)
def blend(
    builder: Builder, a: Value, b: Value, weight_a: Value, weight_b: Value, count: Value
) -> None:
    """Set a = weight_a * a + weight_b * b over `count` floats."""
    factor_a, factor_b = splat(builder, weight_a), splat(builder, weight_b)

    def mix(index: Value, rest: Value | None) -> None:
        where = element(builder, a, index)
        other = builder.fmul(load(builder, element(builder, b, index), rest), factor_b)
        store(builder, fma(builder, load(builder, where, rest), factor_a, other), where, rest)

    each_chunk(builder, count, mix)


@emitted(types.void, types.int64, types.int64, types.float32, types.int64)
def scale_into(builder: Builder, out: Value, source: Value, divisor: Value, count: Value) -> None:
    """Set out = source / divisor over `count` floats."""
    factor = splat(builder, builder.fdiv(ir.Constant(FLOAT, 1.0), divisor))

    def scale(index: Value, rest: Value | None) -> None:
        value = builder.fmul(load(builder, element(builder, source, index), rest), factor)
        store(builder, value, element(builder, out, index), rest)

    each_chunk(builder, count, scale)


@emitted(types.void, types.int64, types.int64, types.int64, types.float32)
def fill(builder: Builder, address: Value, start: Value, stop: Value, value: Value) -> None:
    """Set floats `start` to `stop` of an array."""
    with cgutils.for_range_slice(builder, start, stop, word(1)) as (index, _):
        builder.store(value, pointer(builder, element(builder, address, index), FLOAT))
