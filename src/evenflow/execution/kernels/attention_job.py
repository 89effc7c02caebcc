"""What an attention kernel is told, and the memory it works in.

Knows: addresses, strides, sizes.
Does not know: tensors, arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

LANES = 16  # floats of the widest vector, and keys that C++ kernels arrange together
CACHE_LINE = 64  # bytes
KV_TYPES = ("fp32", "bf16", "int8")  # by the numbers that jobs call them
MOST_CODES = 1024  # entries of a head as int8: sums of products stay below 2^31
MIN_ROWS = 4  # query rows that scratch has room for, at least
UNITS_PER_THREAD = 4  # with fewer units of work than this, splits are shared out as well

RECORD_EXTRA = 2  # peak and total weight, behind a record's head_dim sums
LIST_EXTRA = 48  # entries behind a list of keys, as far as loops look ahead


class AttentionJob(NamedTuple):
    """The integer arguments of `attention_kernel`; addresses and strides are in bytes.

    Attributes:
        query: float32 (num_tokens, num_heads, head_dim), by the next two strides.
        query_token_bytes: stride.
        query_head_bytes: stride.
        positions: int64 (num_tokens,).
        keys: rows (num_blocks, num_kv_heads, block_size), by the next three strides; what lies in
            a row says `kv_rows`.
        values: likewise, same strides.
        block_bytes: stride.
        head_bytes: stride.
        token_bytes: stride.
        block_size: tokens per block.
        block_tables: int32 (num_requests, table_width).
        table_width: blocks per row of the table.
        items: int32 (num_items, 3): request, first token, number of tokens.
        num_items: how many.
        num_threads: threads at most.
        num_kv_heads: KV heads.
        group_size: query heads per KV head.
        head_dim: entries per head.
        start: first position anybody sees.
        stop: position nobody sees, nor any behind it.
        window: positions a token sees at most.
        split_keys: keys per split, a multiple of eight.
        max_rows: rows of the largest item.
        record_bytes: stride of records.
        records: the splits' records (num_items, num_kv_heads, splits, max_rows), if splits are
            shared out.
        finished: int64 (num_items, num_kv_heads), splits done: zero before and after; likewise.
        scratch: memory for each thread.
        scratch_bytes: stride.
        out: float32 (num_tokens, num_heads, head_dim), contiguous.
        lse: float32 (num_tokens, num_heads), contiguous; 0 if not wanted.
        kv_type: of keys and values, its place in `KV_TYPES`; numba's kernels know the first.
    """

    query: int
    query_token_bytes: int
    query_head_bytes: int
    positions: int
    keys: int
    values: int
    block_bytes: int
    head_bytes: int
    token_bytes: int
    block_size: int
    block_tables: int
    table_width: int
    items: int
    num_items: int
    num_threads: int
    num_kv_heads: int
    group_size: int
    head_dim: int
    start: int
    stop: int
    window: int
    split_keys: int
    max_rows: int
    record_bytes: int
    records: int
    finished: int
    scratch: int
    scratch_bytes: int
    out: int
    lse: int
    kv_type: int


class Unit(NamedTuple):
    """An item x KV head: what one task, or one task per split, works on."""

    number: int
    request: int
    first_token: int
    num_rows: int
    kv_head: int
    first_key: int
    last_key: int


class Scratch(NamedTuple):
    """Addresses of one thread's working memory (see `scratch_bytes`)."""

    queries: int
    bounds: int
    offsets: int
    weights: int
    weight_bytes: int
    records: int
    states: int


ATTENTION_LAYOUT = "q" * len(AttentionJob._fields) + "d"


def shares_splits(num_units: int, num_threads: int) -> bool:
    """Return whether the splits of a unit are tasks of their own."""
    return num_threads > 1 and num_units < UNITS_PER_THREAD * num_threads


def record_bytes(head_dim: int) -> int:
    """Return the stride of records: whole cache lines, so that threads share none."""
    return -(-4 * (head_dim + RECORD_EXTRA) // CACHE_LINE) * CACHE_LINE


def scratch_bytes(split_keys: int, max_rows: int, head_dim: int, kv_type: int) -> int:
    """Return how much working memory a thread needs, in whole cache lines."""
    keys = 8 * (split_keys + LIST_EXTRA) + LANES * record_bytes(head_dim)  # listed and arranged
    bounds_and_weights = 16 + 4 * (split_keys + LANES)
    row = bounds_and_weights + 3 * record_bytes(head_dim)  # query, record, state
    num_parts = 7  # each may begin at a cache line of its own
    if KV_TYPES[kv_type] == "int8":
        value = -(-head_dim // CACHE_LINE) * CACHE_LINE
        keys += (split_keys + LANES) * (value + 8)  # values, arranged, and both scales
        row += 12 + 2 * (split_keys + LANES)  # steps of query and weights, codes of weights
        num_parts += 6
    rows = max(max_rows, MIN_ROWS) * row
    return (-(-(keys + rows) // CACHE_LINE) + num_parts) * CACHE_LINE
