"""Prompts as chains of hash ids, the way traces with prefixes tell them.

A prompt is cut into blocks of equal length. A block's id stands for the whole text up to its end,
so that two prompts with the same id at some place are equal up to there, as in a prefix cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evenflow.core.rng import derive_seed
from evenflow.workloads.request import Segment

MOONCAKE_BLOCK_TOKENS = 512
_PREFIX = "block "
_UNUSED_SEED_BITS = 11
"""Computed ids have 53 bits: a JSON reader that knows only doubles still tells them apart."""


def segments_of(
    ids: Sequence[int], num_tokens: int, block_tokens: int = MOONCAKE_BLOCK_TOKENS
) -> tuple[Segment, ...]:
    """Return a prompt of `num_tokens` tokens as segments, one per block.

    Raises:
        ValueError: the number of ids is not that of the started blocks.
    """
    num_blocks = math.ceil(num_tokens / block_tokens)
    if len(ids) != num_blocks:
        raise ValueError(
            f"it has {len(ids)} hash_ids where {num_tokens} tokens are {num_blocks} blocks of "
            f"{block_tokens}"
        )
    full = [Segment(f"{_PREFIX}{block}", block_tokens) for block in ids[:-1]]
    last_tokens = num_tokens - block_tokens * len(full)
    return (*full, Segment(f"{_PREFIX}{ids[-1]}", last_tokens))


def exact_ids(segments: Sequence[Segment]) -> tuple[list[int], int] | None:
    """Return the ids and the block length from which `segments_of` made these segments.

    None when it did not: then ids would say less than the segments do.
    """
    if not segments:
        return None
    is_alone = len(segments) == 1
    block_tokens = MOONCAKE_BLOCK_TOKENS if is_alone else segments[0].num_tokens
    ids = []
    for index, (key, num_tokens) in enumerate(segments):
        is_last = index == len(segments) - 1
        number = key.removeprefix(_PREFIX)
        is_block = key.startswith(_PREFIX) and number.isdecimal() and str(int(number)) == number
        fits = num_tokens <= block_tokens if is_last else num_tokens == block_tokens
        if not is_block or not fits:
            return None
        ids.append(int(number))
    return ids, block_tokens


def block_ids(segments: Sequence[Segment], block_tokens: int) -> list[int]:
    """Return one id per started block of a prompt, for any segments.

    The ids depend on nothing but the text up to the end of their block.
    """
    exact = exact_ids(segments)
    if exact is not None and exact[1] == block_tokens:
        return exact[0]
    ids: list[int] = []
    pieces: list[str | int] = []
    num_filled = 0
    for key, num_tokens in segments:
        start = 0
        while start < num_tokens:
            num_taken = min(num_tokens - start, block_tokens - num_filled)
            pieces += (key, start, num_taken)
            start += num_taken
            num_filled += num_taken
            if num_filled == block_tokens:
                ids.append(_chained(ids, pieces))
                pieces, num_filled = [], 0
    if pieces:
        ids.append(_chained(ids, pieces))
    return ids


def _chained(ids: Sequence[int], pieces: Sequence[str | int]) -> int:
    return derive_seed(*ids[-1:], *pieces) >> _UNUSED_SEED_BITS
