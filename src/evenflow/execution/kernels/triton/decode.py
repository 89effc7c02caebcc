"""Attention for requests with one new token: split over the keys, then merged.

With one token there are as many rows as a group has heads, far too few for all processors of a GPU
when requests are few. So the keys of a request are cut into splits, and several programs per
request and KV head share them.

```
split     keys [i * s, (i + 1) * s) of the context; s follows from the keys the request sees, so
          that it has MAX_SPLITS of them at most
record    the state of the online softmax over one split: peak, total, sums
worker    a program; takes every num_workers-th split of one request and KV head
```

How many workers there are depends on the batch; what a split is and that records are merged in
ascending order does not. A lone worker merges as it goes; otherwise `merge_kernel` does, with the
same multiply-adds, so both give the same bits.

Time goes to memory: each key and value is read once, at four operations per byte and head of the
group. A record of `group * (head_dim + 2)` fp32 is written and read once per `2 * s * head_dim`
entries of keys and values: three percent in 16 bits, for groups of four.
"""

# What a kernel is compiled for is written in capitals; Triton has no types.
# ruff: noqa: N803
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from evenflow.execution.kernels.triton import softmax


@triton.jit(do_not_specialize=["table_stride", "start", "stop", "window", "max_records"])
def decode_kernel(
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
    start: int,
    stop: int,
    window: int,
    scale: float,
    out: tl.tensor,  # (num_tokens, num_heads, HEAD_DIM), contiguous
    lse: tl.tensor,  # (num_tokens, num_heads), fp32, or None
    records: tl.tensor,  # (num_requests, num_heads, max_records, HEAD_DIM), fp32, or None
    states: tl.tensor,  # (num_requests, num_heads, max_records, 2), fp32: peak, total; or None
    max_records: int,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
) -> None:
    """Attend with one worker; grid (num_workers, num_kv_heads, num_requests)."""
    worker, kv_head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_workers, num_heads = tl.num_programs(0), tl.num_programs(1) * GROUP
    token = tl.load(query_starts + request)
    if tl.load(query_starts + request + 1) - token != 1:
        return  # the prefill kernel's request

    row = tl.arange(0, ROWS)
    head = kv_head * GROUP + row
    is_row = row < GROUP
    entries = tl.arange(0, WIDTH)
    is_value = is_row[:, None] & (entries < HEAD_DIM)[None, :]
    at = token.to(tl.int64) * query_token_stride + head * query_head_stride
    tile_query = tl.load(query + at[:, None] + entries[None, :], mask=is_value, other=0.0)
    tile_query = tile_query.to(keys.dtype.element_ty)

    context = tl.load(context_lens + request)
    lowest, highest, split_keys = _span(context, start, stop, window, SPLIT_KEYS, MAX_SPLITS)
    positions = tl.full((ROWS,), 0, tl.int32) + (context - 1)
    head_keys, head_values = keys + kv_head * head_stride, values + kv_head * head_stride
    table = block_tables + request.to(tl.int64) * table_stride
    first_split = lowest // split_keys
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    for split in range(first_split + worker, tl.cdiv(highest, split_keys), num_workers):
        begin = tl.maximum(split * split_keys, lowest // KEYS * KEYS)
        end = tl.minimum((split + 1) * split_keys, highest)
        unmasked = tl.minimum(tl.maximum(begin, tl.cdiv(lowest, KEYS) * KEYS), end)
        masked = tl.maximum(end // KEYS * KEYS, unmasked)
        split_peak, split_total, split_sums = softmax.attend(
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
            end,
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
        if records is None:
            peak, total, sums = softmax.merge(
                peak, total, sums, split_peak, split_total, split_sums
            )
        else:
            record = (request * num_heads + head).to(tl.int64) * max_records + split - first_split
            tl.store(
                records + record[:, None] * HEAD_DIM + entries[None, :], split_sums, mask=is_value
            )
            tl.store(states + 2 * record, split_peak, mask=is_row)
            tl.store(states + 2 * record + 1, split_total, mask=is_row)
    if records is None:
        result, row_lse = softmax.finish(peak, total, sums)
        at = token.to(tl.int64) * num_heads + head
        tl.store(
            out + at[:, None] * HEAD_DIM + entries[None, :],
            result.to(out.dtype.element_ty),
            mask=is_value,
        )
        if lse is not None:
            tl.store(lse + at, row_lse, mask=is_row)


@triton.jit(do_not_specialize=["start", "stop", "window", "max_records"])
def merge_kernel(
    query_starts: tl.tensor,
    context_lens: tl.tensor,
    start: int,
    stop: int,
    window: int,
    out: tl.tensor,
    lse: tl.tensor,
    records: tl.tensor,
    states: tl.tensor,
    max_records: int,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
) -> None:
    """Merge the records of one request and query head; grid (num_heads, num_requests)."""
    head, request = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(0)
    token = tl.load(query_starts + request)
    if tl.load(query_starts + request + 1) - token != 1:
        return
    context = tl.load(context_lens + request)
    lowest, highest, split_keys = _span(context, start, stop, window, SPLIT_KEYS, MAX_SPLITS)
    num_records = tl.maximum(tl.cdiv(highest, split_keys) - lowest // split_keys, 0)
    entries = tl.arange(0, WIDTH)
    is_entry = (entries < HEAD_DIM)[None, :]
    peak = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    sums = tl.zeros((1, WIDTH), tl.float32)
    first = (request * num_heads + head).to(tl.int64) * max_records
    for index in tl.range(num_records, num_stages=4):  # the loads do not wait for the merges
        record = first + index + tl.arange(0, 1)
        split_sums = tl.load(
            records + record[:, None] * HEAD_DIM + entries[None, :], mask=is_entry, other=0.0
        )
        split_peak, split_total = tl.load(states + 2 * record), tl.load(states + 2 * record + 1)
        peak, total, sums = softmax.merge(peak, total, sums, split_peak, split_total, split_sums)
    result, row_lse = softmax.finish(peak, total, sums)
    at = token.to(tl.int64) * num_heads + head + tl.arange(0, 1)
    tl.store(
        out + at[:, None] * HEAD_DIM + entries[None, :],
        result.to(out.dtype.element_ty),
        mask=is_entry,
    )
    if lse is not None:
        tl.store(lse + at, row_lse)


@triton.jit
def _span(
    context: int,
    start: int,
    stop: int,
    window: int,
    SPLIT_KEYS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the keys that the last token sees, from and up to, and the length of a split."""
    lowest = tl.maximum(tl.maximum(start, context - window), 0)
    highest = tl.maximum(tl.minimum(stop, context), lowest)
    # One split more than the length suggests is touched when the first one begins within it.
    multiple = tl.cdiv(highest - lowest, SPLIT_KEYS * (MAX_SPLITS - 1))
    return lowest, highest, tl.maximum(multiple, 1) * SPLIT_KEYS
