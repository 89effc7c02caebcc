"""What the CPU kernels other than attention are told: their argument words, in order.

Addresses and strides are in bytes. Knows: addresses, sizes. Does not know: tensors, arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

SILU, GELU_TANH = 0, 1

# The argument words of each kernel, in the order in which it unpacks them.
NORM_LAYOUT = "qqqqqqqqd"
ADD_NORM_LAYOUT = "qqqqqqqqd"
GATE_LAYOUT = "qqqqqq"
GATHER_LAYOUT = "qqqqqqd"


class RotateStoreJob(NamedTuple):
    """The arguments of `rotate_store_kernel`; see `AttentionJob` for those of the cache.

    Attributes:
        num_pairs: pairs of a head that are turned: (x[i], x[i + num_pairs]).
        queries: float32 (num_tokens, num_heads, head_dim), by the two strides; changed in place.
        source_keys: float32 (num_tokens, num_kv_heads, head_dim), by the two strides.
        source_values: likewise.
        cos: float32 (num_tokens, num_pairs), by the stride behind the next.
        sin: likewise, same stride.
        slots: int64 (num_tokens,); negative for a token that is not stored.
        kv_type: of the cache.
    """

    num_tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_pairs: int
    queries: int
    query_token_bytes: int
    query_head_bytes: int
    source_keys: int
    key_token_bytes: int
    key_head_bytes: int
    source_values: int
    value_token_bytes: int
    value_head_bytes: int
    cos: int
    sin: int
    table_token_bytes: int
    slots: int
    keys: int
    values: int
    block_bytes: int
    head_bytes: int
    token_bytes: int
    block_size: int
    kv_type: int


ROTATE_STORE_LAYOUT = "q" * len(RotateStoreJob._fields)


class PackJob(NamedTuple):
    """The arguments of `pack_kernel`.

    Attributes:
        type: number of the type (`quantised.PACKED_TYPES`).
        num_rows: output features.
        num_groups: input features / 32.
        rows: the stored rows.
        row_bytes: stride.
        tiles: the packed weight, one tile for each 16 rows.
        tile_bytes: stride.
    """

    type: int
    num_rows: int
    num_groups: int
    rows: int
    row_bytes: int
    tiles: int
    tile_bytes: int


class LinearPart(NamedTuple):
    """One of the weights that `linear_kernel` multiplies by, in its `parts`.

    Attributes:
        type: as in `PackJob`.
        num_rows: output features.
        tiles: the packed weight.
        tile_bytes: stride.
        first_column: the first column of `out` that is this weight's.
    """

    type: int
    num_rows: int
    tiles: int
    tile_bytes: int
    first_column: int


class LinearJob(NamedTuple):
    """The arguments of `linear_kernel`.

    Attributes:
        num_rows: rows of x.
        x: float32 (num_rows, 32 * num_groups), by the next stride.
        x_row_bytes: stride.
        out: float32 (num_rows, num_columns), contiguous.
        rounded: memory for rows of x in int8, for each thread.
        num_threads: threads at most.
        rounded_bytes: stride of that memory; room for eight rows at least.
        num_groups: input features / 32.
        num_columns: output features of all parts.
        bias: float32 (num_columns,); 0 if there is none.
        parts: `LinearPart` after `LinearPart`.
        num_parts: how many.
    """

    num_rows: int
    x: int
    x_row_bytes: int
    out: int
    rounded: int
    num_threads: int
    rounded_bytes: int
    num_groups: int
    num_columns: int
    bias: int
    parts: int
    num_parts: int


class EmbedJob(NamedTuple):
    """The integer arguments of `embed_kernel`; the last is the factor of all entries, a float64.

    Attributes:
        type: as in `PackJob`.
        num_ids: rows wanted.
        num_groups: entries of a row / 32.
        tiles: the packed weight.
        tile_bytes: stride.
        ids: int64 (num_ids,).
        out: float32 (num_ids, 32 * num_groups), contiguous.
    """

    type: int
    num_ids: int
    num_groups: int
    tiles: int
    tile_bytes: int
    ids: int
    out: int


PACK_LAYOUT = "q" * len(PackJob._fields)
LINEAR_LAYOUT = "q" * len(LinearJob._fields)
EMBED_LAYOUT = "q" * len(EmbedJob._fields) + "d"


class ReplayJob(NamedTuple):
    """The arguments of `replay_kernel`.

    Attributes:
        calls: int64 (num_calls, 2): the address of each kernel, and of its words.
        num_calls: how many.
    """

    calls: int
    num_calls: int


REPLAY_LAYOUT = "q" * len(ReplayJob._fields)
