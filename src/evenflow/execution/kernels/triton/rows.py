"""Kernels that work on each row by itself: norms, rotation, gates, and the write into the KV store.

All of them are bound by memory: a row is read once, kept in fp32 registers and written once, and
what is fused saves a trip. The sum of a norm runs over a whole row within one program, in an order
that its length alone decides.

Rows are addressed by (token, group) with a stride each, so that the heads of a projection's output
can be normalised and turned where they lie.

Knows: addresses, strides.
Does not know: tensors, layers.
"""

# What a kernel is compiled for is written in capitals; Triton has no types.
# ruff: noqa: N803
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def norm_kernel(
    x: tl.tensor,  # (num_tokens, NUM_GROUPS, DIM)
    token_stride: int,
    group_stride: int,
    residual: tl.tensor,  # (num_rows, DIM), contiguous, changed in place; or None
    weight: tl.tensor,  # (DIM,)
    out: tl.tensor,  # (num_rows, DIM), contiguous
    num_rows: int,
    eps: float,
    NUM_GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Write x / sqrt(mean(x^2) + eps) * weight; with a residual, of x + residual, which is kept.

    Reads x (and the residual) once, writes the result (and the residual) once. Grid (num_rows /
    ROWS,): short rows, such as heads, share a program.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    entries = tl.arange(0, WIDTH)
    is_value = (row < num_rows)[:, None] & (entries < DIM)[None, :]
    row = row.to(tl.int64)
    at = row // NUM_GROUPS * token_stride + row % NUM_GROUPS * group_stride
    values = tl.load(x + at[:, None] + entries[None, :], mask=is_value, other=0.0).to(tl.float32)
    at = row[:, None] * DIM + entries[None, :]
    if residual is not None:
        values += tl.load(residual + at, mask=is_value, other=0.0).to(tl.float32)
        kept = values.to(residual.dtype.element_ty)
        tl.store(residual + at, kept, mask=is_value)
        values = kept.to(tl.float32)  # the norm is that of the sum as it is stored
    inverse = tl.rsqrt(tl.sum(values * values, 1) / DIM + eps)
    factors = tl.load(weight + entries, mask=entries < DIM, other=0.0).to(tl.float32)
    result = values * inverse[:, None] * factors[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=is_value)


@triton.jit
def gate_kernel(
    gate_up: tl.tensor,  # (num_rows, 2 * DIM)
    row_stride: int,
    out: tl.tensor,  # (num_rows, DIM), contiguous
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_SILU: tl.constexpr,
) -> None:
    """Write activation(gate) * up for a piece of a row; grid (num_rows, DIM / BLOCK).

    Both activations are a product with a sigmoid: silu(g) = g * sigmoid(g), and as
    tanh(z) = 2 * sigmoid(2 z) - 1, gelu_tanh(g) = g * sigmoid(sqrt(8 / pi) * (g + 0.044715 g^3)).
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_value = column < DIM
    at = gate_up + row * row_stride + column
    gate = tl.load(at, mask=is_value, other=0.0).to(tl.float32)
    up = tl.load(at + DIM, mask=is_value, other=0.0).to(tl.float32)
    slope = gate if IS_SILU else 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    result = gate * tl.sigmoid(slope) * up
    tl.store(out + row * DIM + column, result.to(out.dtype.element_ty), mask=is_value)


@triton.jit
def rotate_store_kernel(
    queries: tl.tensor,  # (num_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM), changed in place
    query_token_stride: int,
    query_head_stride: int,
    new_keys: tl.tensor,  # (num_tokens, NUM_KV_HEADS, HEAD_DIM)
    key_token_stride: int,
    key_head_stride: int,
    new_values: tl.tensor,  # likewise
    value_token_stride: int,
    value_head_stride: int,
    cos: tl.tensor,  # (num_tokens, PAIRS)
    sin: tl.tensor,
    table_stride: int,
    slots: tl.tensor,  # (num_tokens,), int64: block_id * BLOCK_SIZE + offset; negative for none
    keys: tl.tensor,  # (num_blocks, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    values: tl.tensor,
    block_stride: int,
    head_stride: int,
    token_stride: int,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    PAIRS_WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
) -> None:
    """Turn the queries of a token and a KV head in place, and write its key, turned, and its value.

    What is stored is rounded once, from fp32 to the store's dtype. Grid (num_tokens, KV heads).
    """
    token, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pair = tl.arange(0, PAIRS_WIDTH)
    is_pair = pair < PAIRS
    turn = token * table_stride + pair
    cosine = tl.load(cos + turn, mask=is_pair, other=0.0).to(tl.float32)
    sine = tl.load(sin + turn, mask=is_pair, other=0.0).to(tl.float32)

    head = tl.arange(0, HEADS)
    is_query = (head < GROUP)[:, None] & is_pair[None, :]
    at = queries + token * query_token_stride + pair[None, :]
    at += (kv_head * GROUP + head)[:, None] * query_head_stride
    _rotate(at, at, PAIRS, cosine[None, :], sine[None, :], is_query)

    slot = tl.load(slots + token)
    if slot < 0:
        return
    to = slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * token_stride
    to += kv_head * head_stride
    key = new_keys + token * key_token_stride + kv_head * key_head_stride
    _rotate(keys + to + pair, key + pair, PAIRS, cosine, sine, is_pair)
    entry = tl.arange(0, WIDTH)
    is_entry = entry < HEAD_DIM
    if 2 * PAIRS < HEAD_DIM:
        is_behind = is_entry & (entry >= 2 * PAIRS)
        behind = tl.load(key + entry, mask=is_behind)
        tl.store(keys + to + entry, behind.to(keys.dtype.element_ty), mask=is_behind)
    value = new_values + token * value_token_stride + kv_head * value_head_stride + entry
    value = tl.load(value, mask=is_entry)
    tl.store(values + to + entry, value.to(values.dtype.element_ty), mask=is_entry)


@triton.jit
def _rotate(
    to: tl.tensor,
    source: tl.tensor,
    PAIRS: tl.constexpr,
    cosine: tl.tensor,
    sine: tl.tensor,
    is_pair: tl.tensor,
) -> None:
    """Turn pairs of entries, PAIRS apart, on the way from where they lie to `to`, or in place."""
    first = tl.load(source, mask=is_pair, other=0.0).to(tl.float32)
    second = tl.load(source + PAIRS, mask=is_pair, other=0.0).to(tl.float32)
    turned_first = first * cosine - second * sine
    turned_second = second * cosine + first * sine
    tl.store(to, turned_first.to(to.dtype.element_ty), mask=is_pair)
    tl.store(to + PAIRS, turned_second.to(to.dtype.element_ty), mask=is_pair)
