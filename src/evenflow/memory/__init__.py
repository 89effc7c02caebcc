"""KV memory: blocks, extents, tables, the prefix cache, eviction and sizing.

Knows: which blocks exist, who holds them, which content they carry.
Does not know: torch, tensors, models, when a request should run.

Invariants:
    Every block is in exactly one place: a free extent, the evictable cache (reference count 0), or
    as many block tables and pins as its reference count says.
    A full block never changes; a block with more than one reference is never written to.
    `KVCacheManager` alone changes the pool.
"""
