"""The kernel that turns queries and keys, and writes new keys and values into a KV store.

Knows: addresses, strides, slots.
Does not know: tensors.
"""

from __future__ import annotations

from numba import types

from evenflow.execution.kernels.jobs import RotateStoreJob
from evenflow.execution.kernels.parallel import FIRST_ARGUMENT, NEXT_TASK
from evenflow.execution.kernels.portable import simd
from evenflow.execution.kernels.portable.kernel import NumbaKernel, device_function
from evenflow.execution.kernels.portable.simd import (
    FLOAT_BYTES,
    Builder,
    Value,
    copy_floats,
    element,
    emitted,
    fma,
    load,
    read_word,
    store,
    take_ticket,
    words_reader,
)

_read_job = words_reader(len(RotateStoreJob._fields))
_TOKENS_PER_TASK = 8


@emitted(types.void, *[types.int64] * 5)
def _rotate_head(
    builder: Builder, to: Value, x: Value, cos: Value, sin: Value, num_pairs: Value
) -> None:
    """Turn each pair (x[i], x[i + num_pairs]) by its angle; `to` may be x."""

    def turn(index: Value, rest: Value | None) -> None:
        other = builder.add(index, num_pairs)
        a, b, c, s = (
            load(builder, element(builder, array, i), rest)
            for array, i in ((x, index), (x, other), (cos, index), (sin, index))
        )
        first = fma(builder, a, c, builder.fneg(builder.fmul(b, s)))
        second = fma(builder, b, c, builder.fmul(a, s))
        store(builder, first, element(builder, to, index), rest)
        store(builder, second, element(builder, to, other), rest)

    simd.each_chunk(builder, num_pairs, turn)


@device_function
def _rotate_store_token(job, token):  # type: ignore[no-untyped-def]
    cos, sin = job.cos + token * job.table_token_bytes, job.sin + token * job.table_token_bytes
    for head in range(job.num_heads):
        query = job.queries + token * job.query_token_bytes + head * job.query_head_bytes
        _rotate_head(query, query, cos, sin, job.num_pairs)
    slot = read_word(job.slots, token)
    if slot < 0:
        return
    at = slot // job.block_size * job.block_bytes + slot % job.block_size * job.token_bytes
    num_turned = 2 * job.num_pairs
    behind = num_turned * FLOAT_BYTES
    for head in range(job.num_kv_heads):
        key = job.source_keys + token * job.key_token_bytes + head * job.key_head_bytes
        value = job.source_values + token * job.value_token_bytes + head * job.value_head_bytes
        keys = job.keys + at + head * job.head_bytes
        _rotate_head(keys, key, cos, sin, job.num_pairs)
        copy_floats(keys + behind, key + behind, job.head_dim - num_turned)
        copy_floats(job.values + at + head * job.head_bytes, value, job.head_dim)


@NumbaKernel
def rotate_store_kernel(words: int) -> None:
    """Turn queries of new tokens in place, and write their keys, turned, and values into slots."""
    job = RotateStoreJob(*_read_job(words + 8 * FIRST_ARGUMENT))
    while True:
        first = take_ticket(words, NEXT_TASK) * _TOKENS_PER_TASK
        if first >= job.num_tokens:
            break
        for token in range(first, min(first + _TOKENS_PER_TASK, job.num_tokens)):
            _rotate_store_token(job, token)
