"""What there is to say about KV memory at a moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class KVCacheStats:
    """Where the blocks are, and what the prefix cache was good for.

    Attributes:
        num_blocks: all of them, each counted in one of `num_free`, `num_used`, `num_reserved`,
            `num_evictable` and `num_pinned`.
        num_free: hold nothing.
        num_used: held by requests for tokens they have.
        num_reserved: held by requests for tokens to come; can be taken back.
        num_evictable: held by nobody, kept for their content.
        num_pinned: kept for their content until they are unpinned, and held by no request.
        num_cached: content can be found, whether held or evictable.
        mean_extent_blocks: blocks per extent over all block tables, 0 without tables.
        num_query_tokens: tokens of admitted requests, those resumed after a preemption apart.
        num_hit_tokens: how many of these came out of the prefix cache.
    """

    num_blocks: int
    num_free: int
    num_used: int
    num_reserved: int
    num_evictable: int
    num_cached: int
    mean_extent_blocks: float
    num_query_tokens: int
    num_hit_tokens: int
    num_pinned: int
