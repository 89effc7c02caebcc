"""Attention for requests with several new tokens.

A program takes one tile: a run of new tokens of one request, for one KV head. The query heads that
share this KV head stand side by side in the rows of the tile, so that a key is read once for all of
them. Programs are numbered by tile, then by KV head. Which request a tile belongs to is found by
bisection in `query_starts`: request i owns the tiles from `query_starts[i] // TOKENS + i` on, which
is enough for its tokens however they fall, at the price of one idle program per request at most.

The last tiles see the most keys, so they start first. Only the tiles of keys that cut through the
diagonal, the edge of a window or the end of a range are masked, and those beyond them are skipped.

Time goes to the tensor cores once a tile has as many rows as a tile of keys has entries; what is
lost is lost to the power of two of each score and to waiting for the first keys.

Invariant:
    Tiles of keys begin at multiples of KEYS of the context, and a tile that a row does not see
    leaves its state as it was. So a row does not depend on how a prompt was cut into chunks.
"""

# What a kernel is compiled for is written in capitals; Triton has no types.
# ruff: noqa: N803
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from evenflow.execution.kernels.triton import softmax


@triton.jit(do_not_specialize=["num_requests", "table_stride", "start", "stop", "window"])
def prefill_kernel(
    query: tl.tensor,  # (num_tokens, num_heads, HEAD_DIM)
    query_token_stride: int,
    query_head_stride: int,
    keys: tl.tensor,  # (num_blocks, num_kv_heads, BLOCK_SIZE, HEAD_DIM)
    values: tl.tensor,
    block_stride: int,
    head_stride: int,
    token_stride: int,
    block_tables: tl.tensor,
    table_stride: int,
    query_starts: tl.tensor,
    context_lens: tl.tensor,
    num_requests: int,
    start: int,
    stop: int,
    window: int,
    scale: float,
    out: tl.tensor,  # (num_tokens, num_heads, HEAD_DIM), contiguous
    lse: tl.tensor,  # (num_tokens, num_heads), fp32, or None
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Attend with one tile of rows; grid (num_tokens // (ROWS // GROUP) + num_requests, heads)."""
    tokens_per_tile: tl.constexpr = ROWS // GROUP
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    num_heads = tl.num_programs(1) * GROUP

    request = _owner(tile, query_starts, num_requests, tokens_per_tile)
    first_token = tl.load(query_starts + request)
    num_new = tl.load(query_starts + request + 1) - first_token
    done = (tile - first_token // tokens_per_tile - request) * tokens_per_tile
    if (num_new <= 1) | (done >= num_new):
        return  # the decode kernel's request, or a tile too many
    context = tl.load(context_lens + request)

    row = tl.arange(0, ROWS)
    token = done + row // GROUP
    is_row = (row < tokens_per_tile * GROUP) & (token < num_new)
    positions = context - num_new + token
    head = kv_head * GROUP + row % GROUP
    entries = tl.arange(0, WIDTH)
    is_value = is_row[:, None] & (entries < HEAD_DIM)[None, :]
    rows = (first_token + token).to(tl.int64)
    at = rows * query_token_stride + head * query_head_stride
    tile_query = tl.load(query + at[:, None] + entries[None, :], mask=is_value, other=0.0)
    tile_query = tile_query.to(keys.dtype.element_ty)

    # The keys that the first and the last token of the tile see, and those that all of them see.
    first_position = context - num_new + done
    last_position = tl.minimum(first_position + tokens_per_tile, context) - 1
    lowest = tl.maximum(tl.maximum(start, first_position + 1 - window), 0)
    highest = tl.minimum(stop, last_position + 1)
    common_lowest = tl.maximum(lowest, last_position + 1 - window)
    common_highest = tl.minimum(stop, first_position + 1)
    begin = lowest // KEYS * KEYS
    unmasked = tl.minimum(tl.cdiv(common_lowest, KEYS) * KEYS, tl.maximum(highest, begin))
    masked = tl.maximum(common_highest // KEYS * KEYS, unmasked)

    head_keys, head_values = keys + kv_head * head_stride, values + kv_head * head_stride
    table = block_tables + request.to(tl.int64) * table_stride
    peak, total, sums = softmax.attend(
        tile_query,
        positions,
        head_keys,
        head_values,
        block_stride,
        token_stride,
        table,
        begin,
        unmasked,
        masked,
        highest,
        lowest,
        highest,
        window,
        scale,
        ROWS,
        HEAD_DIM,
        WIDTH,
        BLOCK_SIZE,
        KEYS,
    )

    result, row_lse = softmax.finish(peak, total, sums)
    at = rows * num_heads + head
    tl.store(
        out + at[:, None] * HEAD_DIM + entries[None, :],
        result.to(out.dtype.element_ty),
        mask=is_value,
    )
    if lse is not None:
        tl.store(lse + at, row_lse, mask=is_row)


@triton.jit
def _owner(
    tile: int,
    query_starts: tl.tensor,
    num_requests: int,
    TOKENS: tl.constexpr,
) -> tl.tensor:
    """Return the last request whose first tile is not behind `tile`."""
    low, high = 0, num_requests
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(query_starts + middle) // TOKENS + middle <= tile:
            low = middle
        else:
            high = middle
    return low
