"""Paged attention on the CPU: the kernels behind `CpuPagedAttention`.

```
item    a run of query tokens of one request
unit    an item x a KV head; its rows are (token, query head of the group)
split   `split_keys` keys at fixed absolute positions: [0, s), [s, 2s), ...
record  a row's partial softmax over one split: [sum of weight * value | peak | total weight]
state   the record of all splits so far

for each unit:
    for each split, ascending:
        record = attend(rows, split)
        state = merge(state, record)
    out = state.sum / state.total
```

A row sees only keys of its own range, cut at its own bounds, and its records are merged in
ascending order. So its bits are a function of its own position and range: not of its chunk, its
batch, the place of its blocks, nor of which thread did what. With few units the splits of one run
on several threads, records wait in memory, and the last to finish merges them in the same order.

Knows: addresses, strides, positions.
Does not know: tensors.
"""

from __future__ import annotations

import math

import numpy as np

from evenflow.execution.kernels.attention_job import (
    LANES,
    LIST_EXTRA,
    RECORD_EXTRA,
    UNITS_PER_THREAD,
    AttentionJob,
    Scratch,
    Unit,
)
from evenflow.execution.kernels.parallel import (
    FIRST_ARGUMENT,
    NEXT_TASK,
    NEXT_THREAD,
)
from evenflow.execution.kernels.portable.attention_vectors import (
    KEYS,
    MAX_ROWS,
    add_1,
    add_2,
    add_3,
    add_4,
    blend,
    exp_scalar,
    exponentiate,
    fill,
    largest,
    scale_into,
    score_1,
    score_2,
    score_3,
    score_4,
)
from evenflow.execution.kernels.portable.kernel import NumbaKernel, device_function
from evenflow.execution.kernels.portable.simd import (
    copy_floats,
    read_double,
    read_float,
    read_int,
    read_word,
    take_ticket,
    words_reader,
    write_float,
    write_word,
)

_SCALE = FIRST_ARGUMENT + len(AttentionJob._fields)
_MINUS_INFINITY = np.float32(-np.inf)
_ZERO = np.float32(0.0)

_read_job = words_reader(len(AttentionJob._fields))


@device_function
def _scratch(job, thread):  # type: ignore[no-untyped-def]
    queries = job.scratch + thread * job.scratch_bytes
    bounds = queries + 8 * MAX_ROWS
    offsets = bounds + 16 * MAX_ROWS
    weights = offsets + 8 * (job.split_keys + LIST_EXTRA)
    weight_bytes = 4 * (job.split_keys + LANES)
    records = weights + MAX_ROWS * weight_bytes
    states = records + job.max_rows * job.record_bytes
    return Scratch(queries, bounds, offsets, weights, weight_bytes, records, states)


@device_function
def _visible(job, token):  # type: ignore[no-untyped-def]
    """Return the first position a token sees and the one after the last."""
    end = read_word(job.positions, token) + 1
    return max(job.start, end - job.window), min(job.stop, end)


@device_function
def _unit(job, number):  # type: ignore[no-untyped-def]
    item = number // job.num_kv_heads
    request = read_int(job.items, 3 * item)
    first_token = read_int(job.items, 3 * item + 1)
    num_tokens = read_int(job.items, 3 * item + 2)
    first_key = _visible(job, first_token)[0]
    last_key = _visible(job, first_token + num_tokens - 1)[1]
    kv_head = number % job.num_kv_heads
    num_rows = num_tokens * job.group_size
    return Unit(number, request, first_token, num_rows, kv_head, first_key, last_key)


@device_function
def _list_keys(job, unit, base, first, last, offsets):  # type: ignore[no-untyped-def]
    """Write the byte offset of each key from `first` to `last`, at its distance from `base`."""
    key = first
    offset = 0
    while key < last:
        block = read_int(job.block_tables, unit.request * job.table_width + key // job.block_size)
        inside = key % job.block_size
        offset = block * job.block_bytes + unit.kv_head * job.head_bytes + inside * job.token_bytes
        for _ in range(min(job.block_size - inside, last - key)):
            write_word(offsets, key - base, offset)
            offset += job.token_bytes
            key += 1
    for extra in range(LIST_EXTRA):
        write_word(offsets, last - base + extra, offset - job.token_bytes)


@device_function
def _score(job, scale, num_rows, first_row, first, last, s):  # type: ignore[no-untyped-def]
    """Score keys `first` to `last` of the split; up to three more weights are overwritten."""
    queries = s.queries + 8 * first_row
    weights = s.weights + first_row * s.weight_bytes
    for key in range(first, last, KEYS):
        offsets = s.offsets + 8 * key
        out = weights + 4 * key
        if num_rows == 4:
            score_4(queries, offsets, job.keys, out, s.weight_bytes, job.head_dim, scale)
        elif num_rows == 3:
            score_3(queries, offsets, job.keys, out, s.weight_bytes, job.head_dim, scale)
        elif num_rows == 2:
            score_2(queries, offsets, job.keys, out, s.weight_bytes, job.head_dim, scale)
        else:
            score_1(queries, offsets, job.keys, out, s.weight_bytes, job.head_dim, scale)


@device_function
def _add_values(job, num_rows, first_row, first, last, s, record):  # type: ignore[no-untyped-def]
    """Add the weighted values of keys `first` to `last` of the split to the rows' sums."""
    sums = record + first_row * job.record_bytes
    stride = job.record_bytes
    weights = s.weights + first_row * s.weight_bytes + 4 * first
    offsets = s.offsets + 8 * first
    count = max(last - first, 0)
    if num_rows == 4:
        add_4(sums, stride, weights, s.weight_bytes, offsets, job.values, count, job.head_dim)
    elif num_rows == 3:
        add_3(sums, stride, weights, s.weight_bytes, offsets, job.values, count, job.head_dim)
    elif num_rows == 2:
        add_2(sums, stride, weights, s.weight_bytes, offsets, job.values, count, job.head_dim)
    else:
        add_1(sums, stride, weights, s.weight_bytes, offsets, job.values, count, job.head_dim)


@device_function
def _softmax(job, row, first, last, s, record):  # type: ignore[no-untyped-def]
    """Turn a row's scores into weights and note their peak and total in its record."""
    if first >= last:
        write_float(record, job.head_dim, _MINUS_INFINITY)
        write_float(record, job.head_dim + 1, _ZERO)
        return
    weights = s.weights + row * s.weight_bytes
    start = first // LANES * LANES
    stop = (last + LANES - 1) // LANES * LANES
    fill(weights, start, first, _MINUS_INFINITY)
    fill(weights, last, stop, _MINUS_INFINITY)
    peak = largest(weights + 4 * start, stop - start)
    write_float(record, job.head_dim, peak)
    write_float(record, job.head_dim + 1, exponentiate(weights + 4 * start, stop - start, peak))


@device_function
def _zone(s, number, num_rows, common_first, common_last):  # type: ignore[no-untyped-def]
    """Return (first row, number of rows, first key, last key) of one zone of a group of rows.

    The rows go together over the keys all of them see, and each alone over the rest of its own:
    zones 0 to n - 1 lie before the common keys, zone n is theirs, zones n + 1 to 2n lie behind.
    """
    if number == num_rows:
        return 0, num_rows, common_first, common_last
    row = number % (num_rows + 1)
    first, last = read_word(s.bounds, 2 * row), read_word(s.bounds, 2 * row + 1)
    if number < num_rows:
        return row, 1, first, min(last, common_first)
    return row, 1, max(first, common_last), last


@device_function
def _attend_rows(job, scale, unit, first_row, num_rows, base, s, record):  # type: ignore[no-untyped-def]
    """Fill the records of up to four rows for the split that starts at key `base`."""
    common_first, common_last = 0, job.split_keys
    for i in range(num_rows):
        row = first_row + i
        token = unit.first_token + row // job.group_size
        head = unit.kv_head * job.group_size + row % job.group_size
        query = job.query + token * job.query_token_bytes + head * job.query_head_bytes
        write_word(s.queries, i, query)
        first, last = _visible(job, token)
        first, last = max(first - base, 0), min(last - base, job.split_keys)
        write_word(s.bounds, 2 * i, first)
        write_word(s.bounds, 2 * i + 1, last)
        fill(record + i * job.record_bytes, 0, job.head_dim, _ZERO)
        common_first, common_last = max(common_first, first), min(common_last, last)
    if common_first >= common_last:
        common_first, common_last = 0, 0
    # In ascending order, because scoring overwrites up to three scores of the zone behind.
    for number in range(2 * num_rows + 1):
        row, rows, first, last = _zone(s, number, num_rows, common_first, common_last)
        _score(job, scale, rows, row, first, last, s)
    for row in range(num_rows):
        first, last = read_word(s.bounds, 2 * row), read_word(s.bounds, 2 * row + 1)
        _softmax(job, row, first, last, s, record + row * job.record_bytes)
    for number in range(2 * num_rows + 1):
        row, rows, first, last = _zone(s, number, num_rows, common_first, common_last)
        _add_values(job, rows, row, first, last, s, record)


@device_function
def _attend_split(job, scale, unit, split, s, records):  # type: ignore[no-untyped-def]
    """Fill the records of all rows of a unit for one split."""
    base = split * job.split_keys
    first, last = max(unit.first_key, base), min(unit.last_key, base + job.split_keys)
    if first < last:
        _list_keys(job, unit, base, first, last, s.offsets)
    for row in range(0, unit.num_rows, MAX_ROWS):
        num_rows = min(MAX_ROWS, unit.num_rows - row)
        _attend_rows(job, scale, unit, row, num_rows, base, s, records + row * job.record_bytes)


@device_function
def _merge(job, state, record):  # type: ignore[no-untyped-def]
    """Fold a record into a state; see `merge_partials` for the algebra."""
    peak_at, total_at = job.head_dim, job.head_dim + 1
    record_total = read_float(record, total_at)
    if record_total == 0:
        return
    state_total = read_float(state, total_at)
    if state_total == 0:
        copy_floats(state, record, job.head_dim + RECORD_EXTRA)
        return
    state_peak, record_peak = read_float(state, peak_at), read_float(record, peak_at)
    peak = max(state_peak, record_peak)
    state_weight = exp_scalar(state_peak - peak)
    record_weight = exp_scalar(record_peak - peak)
    blend(state, record, state_weight, record_weight, job.head_dim)
    write_float(state, peak_at, peak)
    write_float(state, total_at, state_weight * state_total + record_weight * record_total)


@device_function
def _merge_rows(job, unit, states, records):  # type: ignore[no-untyped-def]
    for row in range(unit.num_rows):
        _merge(job, states + row * job.record_bytes, records + row * job.record_bytes)


@device_function
def _clear(job, unit, states):  # type: ignore[no-untyped-def]
    for row in range(unit.num_rows):
        write_float(states + row * job.record_bytes, job.head_dim + 1, _ZERO)


@device_function
def _finish(job, unit, states):  # type: ignore[no-untyped-def]
    """Write the result rows of a unit."""
    for row in range(unit.num_rows):
        state = states + row * job.record_bytes
        token = unit.first_token + row // job.group_size
        head = unit.kv_head * job.group_size + row % job.group_size
        at = token * job.num_kv_heads * job.group_size + head
        out = job.out + 4 * at * job.head_dim
        total = read_float(state, job.head_dim + 1)
        lse = _MINUS_INFINITY
        if total == 0:
            fill(out, 0, job.head_dim, _ZERO)
        else:
            scale_into(out, state, total, job.head_dim)
            lse = read_float(state, job.head_dim) + np.float32(math.log(total))
        if job.lse != 0:
            write_float(job.lse, at, lse)


@device_function
def _run_whole(job, scale, number, s):  # type: ignore[no-untyped-def]
    """Do a unit from its first split to its last."""
    unit = _unit(job, number)
    _clear(job, unit, s.states)
    stop = (unit.last_key + job.split_keys - 1) // job.split_keys
    for split in range(unit.first_key // job.split_keys, stop):
        _attend_split(job, scale, unit, split, s, s.records)
        _merge_rows(job, unit, s.states, s.records)
    _finish(job, unit, s.states)


@device_function
def _grid(job):  # type: ignore[no-untyped-def]
    """Return how many splits of each unit have a task of their own; 0: a task does all of them."""
    num_units = job.num_items * job.num_kv_heads
    if job.num_threads < 2 or num_units >= UNITS_PER_THREAD * job.num_threads:
        return 0
    end = 0
    for number in range(job.num_items):
        item = job.items + 12 * number
        last_token = read_int(item, 1) + read_int(item, 2) - 1
        end = max(end, read_word(job.positions, last_token) + 1)
    return (min(end, job.stop) + job.split_keys - 1) // job.split_keys


@device_function
def _run_split(job, scale, grid, task, s):  # type: ignore[no-untyped-def]
    """Do one split of a unit; whoever does the unit's last one merges them all."""
    unit = _unit(job, task // grid)
    slot_bytes = job.max_rows * job.record_bytes
    slots = job.records + unit.number * grid * slot_bytes
    split = task % grid
    _attend_split(job, scale, unit, split, s, slots + split * slot_bytes)
    if take_ticket(job.finished, unit.number) < grid - 1:
        return
    write_word(job.finished, unit.number, 0)  # for the next call
    _clear(job, unit, s.states)
    for done in range(grid):
        _merge_rows(job, unit, s.states, slots + done * slot_bytes)
    _finish(job, unit, s.states)


@NumbaKernel
def attention_kernel(words: int) -> None:
    """Run tasks until none is left."""
    job = AttentionJob(*_read_job(words + 8 * FIRST_ARGUMENT))
    scale = np.float32(read_double(words, _SCALE))
    scratch = _scratch(job, take_ticket(words, NEXT_THREAD))
    grid = _grid(job)
    num_tasks = job.num_items * job.num_kv_heads * max(grid, 1)
    while True:
        task = take_ticket(words, NEXT_TASK)
        if task >= num_tasks:
            break
        if grid == 0:
            _run_whole(job, scale, task, scratch)
        else:
            _run_split(job, scale, grid, task, scratch)
