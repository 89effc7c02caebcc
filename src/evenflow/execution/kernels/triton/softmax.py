"""The inner loop of attention, shared by prefill and decode, and the merge of partial results.

Online softmax (FlashAttention-2, arXiv 2307.08691, section 3.1): a program holds a tile of query
rows and walks over the keys that they see. For every row it keeps

```
peak    the largest scaled score so far, in powers of two: scores carry a factor log2(e)
total   the sum of 2^(score - peak)
sums    the sum of 2^(score - peak) * value, not yet divided by the total
```

When the peak rises, total and sums shrink by 2^(old - new). The division comes once, at the end.

What moves: each key and value once from the KV store through shared memory, by way of the block
table. What is computed: two products on the tensor cores per tile, 4 * rows * keys * head_dim
operations, and one power of two per score. With many rows the products take the time, with few rows
the memory does.

Keys that some row of the tile must not see are masked: those before and behind the keys that all
rows see, which need no mask.

Knows: one KV head of one request.
Does not know: which rows these are.
"""

# What a kernel is compiled for is written in capitals; Triton has no types.
# ruff: noqa: N803
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend(
    query: tl.tensor,  # (ROWS, WIDTH), in the dtype of the keys
    positions: tl.tensor,  # (ROWS,), int32
    keys: tl.tensor,  # address of this layer's and head's keys
    values: tl.tensor,
    block_stride: int,
    token_stride: int,
    table: tl.tensor,  # address of the request's block ids, int32
    begin: int,  # a multiple of KEYS, as are the next two
    unmasked: int,  # all rows see the keys from here
    masked: int,  # to here
    end: int,
    lowest: int,  # keys below and from `highest` on are not read
    highest: int,
    window: int,
    scale: float,  # times log2(e)
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Walk over keys `begin` to `end` and return the state: peak, total, sums."""
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    for part in tl.static_range(3):
        peak, total, sums = _walk(
            query,
            positions,
            peak,
            total,
            sums,
            keys,
            values,
            block_stride,
            token_stride,
            table,
            begin if part == 0 else (unmasked if part == 1 else masked),
            unmasked if part == 0 else (masked if part == 1 else end),
            lowest,
            highest,
            window,
            scale,
            HEAD_DIM,
            WIDTH,
            BLOCK_SIZE,
            KEYS,
            part != 1,
        )
    return peak, total, sums


@triton.jit
def _walk(
    query: tl.tensor,
    positions: tl.tensor,
    peak: tl.tensor,  # (ROWS,), fp32
    total: tl.tensor,  # (ROWS,), fp32
    sums: tl.tensor,  # (ROWS, WIDTH), fp32
    keys: tl.tensor,
    values: tl.tensor,
    block_stride: int,
    token_stride: int,
    table: tl.tensor,
    first: int,  # a multiple of KEYS
    stop: int,
    lowest: int,
    highest: int,
    window: int,
    scale: float,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Walk over keys `first` to `stop` in steps of KEYS and return the state after them."""
    entries = tl.arange(0, WIDTH)
    is_entry = entries < HEAD_DIM
    # Block ids are read a step ahead: the loads of keys and values depend on nothing in flight, so
    # that the compiler can start those of later steps early.
    where = first + tl.arange(0, KEYS)
    block_ids = _block_ids(table, where, lowest, highest, BLOCK_SIZE)
    for key in range(first, stop, KEYS):
        where = key + tl.arange(0, KEYS)
        # A store may hold more than 2^31 entries.
        offsets = block_ids.to(tl.int64) * block_stride + where % BLOCK_SIZE * token_stride
        block_ids = _block_ids(table, where + KEYS, lowest, highest, BLOCK_SIZE)
        at = offsets[None, :] + entries[:, None]
        is_read = (where >= lowest) & (where < highest)
        loaded = is_read[None, :] & is_entry[:, None] if MASKED else is_entry[:, None]
        scores = tl.dot(query, tl.load(keys + at, mask=loaded, other=0.0), input_precision="ieee")
        if MASKED:
            ahead = where[None, :] - positions[:, None]
            is_seen = is_read[None, :] & (ahead <= 0) & (ahead > -window)
            scores = tl.where(is_seen, scores, float("-inf"))
        risen = tl.maximum(peak, tl.max(scores, 1) * scale)
        shift = _finite(risen)
        weights = tl.exp2(tl.fma(scores, scale, -shift[:, None]))
        shrink = tl.exp2(peak - shift)
        total = tl.fma(total, shrink, tl.sum(weights, 1))
        # What is not read is zero: memory that was never written may hold NaN, and a weight of
        # zero times NaN is NaN.
        value = tl.load(values + tl.trans(at), mask=tl.trans(loaded), other=0.0)
        sums = tl.dot(
            weights.to(value.dtype), value, sums * shrink[:, None], input_precision="ieee"
        )
        peak = risen
    return peak, total, sums


@triton.jit
def merge(
    peak: tl.tensor,
    total: tl.tensor,
    sums: tl.tensor,
    later_peak: tl.tensor,
    later_total: tl.tensor,
    later_sums: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Combine the states of two ranges of keys, the earlier one first.

    The multiply-adds are spelt out, so that every kernel that merges rounds alike.
    """
    risen = tl.maximum(peak, later_peak)
    shift = _finite(risen)
    shrink, later_shrink = tl.exp2(peak - shift), tl.exp2(later_peak - shift)
    total = tl.fma(total, shrink, later_total * later_shrink)
    sums = tl.fma(sums, shrink[:, None], later_sums * later_shrink[:, None])
    return risen, total, sums


@triton.jit
def finish(peak: tl.tensor, total: tl.tensor, sums: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return the attention output and the natural log-sum-exp: 0 and -inf where nothing is seen."""
    out = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    return out, (peak + tl.log2(total)) * 0.6931471805599453


@triton.jit
def _block_ids(
    table: tl.tensor,
    where: tl.tensor,
    lowest: int,
    highest: int,
    BLOCK_SIZE: tl.constexpr,
) -> tl.tensor:
    """Return the blocks that hold some positions, 0 for positions that are not read."""
    is_read = (where >= lowest) & (where < highest)
    return tl.load(table + where // BLOCK_SIZE, mask=is_read, other=0)


@triton.jit
def _finite(peak: tl.tensor) -> tl.tensor:
    """Return 0 for rows that have seen nothing: -inf minus -inf would be NaN."""
    return tl.where(peak == float("-inf"), 0.0, peak)
