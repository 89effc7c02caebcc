"""The draw of one row: cuts and choice by bisection, without sorting.

In the order of descending logits, and of ascending ids among equals, what top-k, top-p and min-p
leave is a prefix: everything above some logit, and the first few of those equal to it. The draw is
an element of that order too. So nothing is sorted: a cut is found by bisection over the bit
patterns of fp32, which order like the numbers, counting and weighing at every step what lies above.
What can be kept at all is listed first, so that most of these passes run over a short list.

```
weight(x) = 2^((x - peak) * log2(e) / temperature), in fp32; sums of weights are kept in fp64
enough(t) = count(x >= t) reaches a goal, or weight(x >= t) does: falls as t rises
cut       = the largest t with enough(t)
```

Without cuts the draw runs in the order of ids, as on the host: the first id at which the running
sum exceeds u times the total.

What moves: the row, four times from memory or cache, and some twenty times more to find a top-k.
What is computed: a comparison and a power of two per logit and pass. One program per row leaves
most of a GPU idle, so time goes to the latency of its passes; they are few enough.
"""

# What a kernel is compiled for is written in capitals; Triton has no types.
# ruff: noqa: N803
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["number_stride"])
def draw_kernel(
    logits: tl.tensor,  # (num_rows, VOCAB_SIZE), fp32
    row_stride: int,
    numbers: tl.tensor,  # see Draws
    number_stride: int,
    listed: tl.tensor,  # (num_rows, LIST), fp32, scratch
    ids: tl.tensor,  # (num_rows, LIST), int32, scratch
    tokens: tl.tensor,  # (num_rows,), int64
    VOCAB_SIZE: tl.constexpr,
    LIST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Draw the token of one row; grid (num_rows,)."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    numbers += row
    temperature = tl.load(numbers)
    top_p = tl.load(numbers + number_stride)
    min_p = tl.load(numbers + 2 * number_stride)
    uniform = tl.load(numbers + 3 * number_stride)
    top_k = tl.load(numbers + 4 * number_stride).to(tl.int32)

    peak, first = _largest(logits, VOCAB_SIZE, BLOCK)
    if temperature == 0.0:
        tl.store(tokens + row, first.to(tl.int64))
        return
    # Bounded, for infinity times the peak's distance to itself would be NaN.
    factor = tl.minimum(1.4426950408889634 / temperature, 1e30).to(tl.float32)
    lowest = _key(tl.full((), float("-inf"), tl.float32))
    count, mass = _above(logits, VOCAB_SIZE, lowest, peak, factor, BLOCK)
    has_top_k = (top_k > 0) & (top_k < VOCAB_SIZE)
    if (min_p == 0.0) & (top_p >= 1.0) & (top_k == 0):
        token = _invert(logits, VOCAB_SIZE, peak, factor, mass, uniform, BLOCK)
        tl.store(tokens + row, token.to(tl.int64))
        return

    # The prefix that is kept: what is above the logit `cut`, and `num_equal` of its equals.
    cut, num_equal = lowest, count
    if has_top_k:
        cut, num_above, above, num_equal = _search(
            logits, VOCAB_SIZE, lowest, count, top_k, float("inf"), peak, factor, BLOCK
        )
        num_equal = tl.minimum(num_equal, top_k - num_above)
        mass = above + num_equal * _weight(_logit(cut), peak, factor).to(tl.float64)
    # Logits of less weight than this together weigh less than what top-p leaves out.
    floor = tl.maximum(min_p, tl.where(has_top_k, 0.0, (1.0 - top_p) * mass / VOCAB_SIZE))
    bound = peak + (tl.log2(floor.to(tl.float32)) - 1e-3) / factor
    bound = tl.maximum(cut, _key(bound))
    num_listed, _listed_mass = _above(logits, VOCAB_SIZE, bound, peak, factor, BLOCK)
    values, is_list = logits, num_listed <= LIST
    if is_list:
        _list_kept(logits, VOCAB_SIZE, bound, listed + row * LIST, ids + row * LIST, BLOCK)
        values = listed + row * LIST
    else:
        num_listed, bound = tl.full((), VOCAB_SIZE, tl.int32), lowest

    if top_p < 1.0:
        goal = top_p * mass
        nucleus, _num_larger, above, equals = _search(
            values, num_listed, bound, num_listed, 2147483647, goal, peak, factor, BLOCK
        )
        weight = _weight(_logit(nucleus), peak, factor).to(tl.float64)
        equals = tl.minimum(equals, tl.maximum(tl.ceil((goal - above) / weight), 1.0).to(tl.int32))
        num_equal = tl.where(nucleus == cut, tl.minimum(num_equal, equals), equals)
        cut = nucleus
    if min_p > 0.0:
        likely = _key(peak + tl.log2(min_p.to(tl.float32)) / factor)
        num_equal = tl.where(likely > cut, VOCAB_SIZE, num_equal)
        cut = tl.maximum(cut, likely)

    # Draw from the prefix.
    _num_above, above = _above(values, num_listed, cut + 1, peak, factor, BLOCK)
    num_least, mass = _above(values, num_listed, cut, peak, factor, BLOCK)
    least = tl.minimum(mass, above + num_equal * _weight(_logit(cut), peak, factor).to(tl.float64))
    goal = least * tl.minimum(uniform, 1.0 - 2.0**-40)
    chosen, _num_larger, above, equals = _search(
        values, num_listed, cut, num_least, 2147483647, goal, peak, factor, BLOCK
    )
    weight = _weight(_logit(chosen), peak, factor).to(tl.float64)
    equals = tl.where(chosen == cut, tl.minimum(equals, num_equal), equals)
    place = tl.minimum(((goal - above) / weight).to(tl.int32), equals - 1)
    at = _find(values, num_listed, chosen, place, BLOCK)
    token = at
    if is_list:
        token = tl.load(ids + row * LIST + at)
    # NaN may leave the list empty, and what runs ahead of the host looks up any token.
    token = tl.minimum(tl.maximum(token, 0), VOCAB_SIZE - 1)
    tl.store(tokens + row, token.to(tl.int64))


@triton.jit
def _key(logit: tl.tensor) -> tl.tensor:
    """Return an int32 that orders like the logit; both zeros are one."""
    bits = (logit + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _logit(key: tl.tensor) -> tl.tensor:
    """Return the logit of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _weight(logit: tl.tensor, peak: tl.tensor, factor: tl.tensor) -> tl.tensor:
    return tl.exp2((logit - peak) * factor)


@triton.jit
def _load(values: tl.tensor, at: tl.tensor, num_values: int) -> tl.tensor:
    return tl.load(values + at, mask=at < num_values, other=float("-inf"))


@triton.jit
def _largest(
    values: tl.tensor, num_values: int, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return the largest value and the first index at which it stands."""
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_at = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, num_values, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = _load(values, at, num_values)
        best_at = tl.where(value > best, at, best_at)
        best = tl.maximum(best, value)
    peak = tl.max(best, 0)
    return peak, tl.min(tl.where(best == peak, best_at, num_values - 1), 0)


@triton.jit
def _above(
    values: tl.tensor,
    num_values: int,
    bound: tl.tensor,
    peak: tl.tensor,
    factor: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return how many values have a key of at least `bound`, and what they weigh."""
    count = tl.zeros((BLOCK,), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, num_values, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = _load(values, at, num_values)
        is_above = (_key(value) >= bound) & (at < num_values)
        count += is_above.to(tl.int32)
        mass += tl.where(is_above, _weight(value, peak, factor), 0.0).to(tl.float64)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _search(
    values: tl.tensor,
    num_values: int,
    low: tl.tensor,  # the lowest key the cut can have
    num_low: tl.tensor,  # values from it upwards
    goal_count: tl.tensor,
    goal_mass: tl.tensor,
    peak: tl.tensor,
    factor: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Find the largest key such that the values from it upwards reach either goal.

    Returns:
        The key, the number and the weight of the values above it, and the number of its equals.
    """
    low = low.to(tl.int64)
    high = _key(peak).to(tl.int64) + 1
    num_high = tl.zeros((), tl.int32)
    above = tl.zeros((), tl.float64)
    # A lone value between the bounds is the cut.
    while (high - low > 1) & (num_low - num_high > 1):
        middle = (low + high) >> 1
        count, mass = _above(values, num_values, middle.to(tl.int32), peak, factor, BLOCK)
        if (count >= goal_count) | (mass >= goal_mass):
            low, num_low = middle, count
        else:
            high, num_high, above = middle, count, mass
    key = tl.full((BLOCK,), -2147483648, tl.int32)
    for start in range(0, num_values, BLOCK):
        found = _key(_load(values, start + tl.arange(0, BLOCK), num_values))
        key = tl.maximum(key, tl.where(found < high, found, key))
    return tl.max(key, 0), num_high, above, num_low - num_high


@triton.jit
def _list_kept(
    values: tl.tensor,
    num_values: int,
    bound: tl.tensor,
    listed: tl.tensor,
    ids: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write the values whose key is at least `bound`, and their ids, in the order of ids."""
    count = tl.zeros((), tl.int32)
    for start in range(0, num_values, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = _load(values, at, num_values)
        is_listed = (_key(value) >= bound) & (at < num_values)
        place = count + tl.cumsum(is_listed.to(tl.int32), 0) - 1
        tl.store(listed + place, value, mask=is_listed)
        tl.store(ids + place, at, mask=is_listed)
        count += tl.sum(is_listed.to(tl.int32), 0)
    tl.debug_barrier()  # other threads of this program read the list next


@triton.jit
def _find(
    values: tl.tensor,
    num_values: int,
    key: tl.tensor,
    place: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return the index of the value that has this key and `place` equals before it."""
    found = tl.zeros((BLOCK,), tl.int32)
    count = tl.zeros((), tl.int32)
    for start in range(0, num_values, BLOCK):
        at = start + tl.arange(0, BLOCK)
        is_equal = (_key(_load(values, at, num_values)) == key) & (at < num_values)
        rank = count + tl.cumsum(is_equal.to(tl.int32), 0)
        found = tl.where(is_equal & (rank == place + 1), at, found)
        count += tl.sum(is_equal.to(tl.int32), 0)
    return tl.max(found, 0)


@triton.jit
def _invert(
    values: tl.tensor,
    num_values: int,
    peak: tl.tensor,
    factor: tl.tensor,
    mass: tl.tensor,
    uniform: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return the first index at which the running sum of the weights exceeds uniform * mass."""
    threshold = mass * tl.minimum(uniform, 1.0 - 2.0**-40)
    before = tl.zeros((), tl.float64)
    start = tl.zeros((), tl.int32)
    found = tl.zeros((), tl.int32) + num_values
    while (found == num_values) & (start < num_values):
        at = start + tl.arange(0, BLOCK)
        weight = _weight(_load(values, at, num_values), peak, factor).to(tl.float64)
        is_past = before + tl.cumsum(weight, 0) > threshold
        found = tl.min(tl.where(is_past, at, num_values), 0)
        before += tl.sum(weight, 0)
        start += BLOCK
    return tl.minimum(found, num_values - 1)
