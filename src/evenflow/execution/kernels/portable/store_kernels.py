"""The kernel that writes new keys and values into a KV store.

Knows: addresses, strides, slots.
Does not know: tensors.
"""

from __future__ import annotations

from evenflow.execution.kernels.jobs import StoreJob
from evenflow.execution.kernels.parallel import FIRST_ARGUMENT, NEXT_TASK
from evenflow.execution.kernels.portable.kernel import NumbaKernel, device_function
from evenflow.execution.kernels.portable.simd import (
    copy_floats,
    read_word,
    take_ticket,
    words_reader,
)

_read_store_job = words_reader(len(StoreJob._fields))
_TOKENS_PER_TASK = 16


@device_function
def _store_token(job, token):  # type: ignore[no-untyped-def]
    slot = read_word(job.slots, token)
    at = slot // job.block_size * job.block_bytes + slot % job.block_size * job.token_bytes
    for head in range(job.num_kv_heads):
        key = job.source_keys + token * job.key_token_bytes + head * job.key_head_bytes
        value = job.source_values + token * job.value_token_bytes + head * job.value_head_bytes
        copy_floats(job.keys + at + head * job.head_bytes, key, job.head_dim)
        copy_floats(job.values + at + head * job.head_bytes, value, job.head_dim)


@NumbaKernel
def store_kernel(words: int) -> None:
    """Write the keys and values of new tokens into their slots."""
    job = StoreJob(*_read_store_job(words + 8 * FIRST_ARGUMENT))
    while True:
        first = take_ticket(words, NEXT_TASK) * _TOKENS_PER_TASK
        if first >= job.num_tokens:
            break
        for token in range(first, min(first + _TOKENS_PER_TASK, job.num_tokens)):
            _store_token(job, token)
