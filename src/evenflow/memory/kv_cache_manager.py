"""KV memory as the scheduler sees it: requests ask for room, and get blocks.

    admit ──▶ ensure ──▶ prepare_write ──▶ (the step runs) ──▶ commit ──▶ ensure ... ──▶ free

Knows: which tokens have room, which full blocks can be found again, which blocks a fork shares.
Does not know: why a request runs or stops; tensors. Requests are read, never changed.

Invariants:
    Only this component changes the pool, through its tables.
    A full block that can be found never changes, nor does one that two requests hold.
    A call that fails changes nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId, RequestId
from evenflow.core.request import Request
from evenflow.memory.block_groups import BlockGroups
from evenflow.memory.block_map import BlockRun, block_runs
from evenflow.memory.block_pool import BlockPool
from evenflow.memory.block_table import BlockTable
from evenflow.memory.eviction import LRU, EvictionPolicy
from evenflow.memory.forks import Forks
from evenflow.memory.kv_cache_stats import KVCacheStats
from evenflow.memory.pins import Pins
from evenflow.memory.prefetcher import Prefetcher
from evenflow.memory.prefix_cache import BlockHash
from evenflow.memory.request_copies import RequestCopies
from evenflow.memory.request_prefixes import RequestPrefixes
from evenflow.memory.residency import Residency
from evenflow.memory.transfers import Tier


class KVCacheManager:
    """The one component that changes KV memory.

    Args:
        num_blocks: blocks of KV memory.
        block_size: tokens per block.
        enable_prefix_caching: whether the content of full blocks is kept and found again.
        initial_group_blocks: most blocks a request is given at once beyond its need.
        eviction: order in which cached content is given up; LRU by default.
        residency: tiers below the device, if there are any.

    Attributes:
        copies: what there is of requests on tiers below the device, if there are any.
        prefetcher: loads from there ahead of need; only with prefix caching.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_caching: bool = True,
        initial_group_blocks: int = 60,
        eviction: EvictionPolicy[BlockHash] | None = None,
        residency: Residency | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._pool = BlockPool(num_blocks, LRU() if eviction is None else eviction)
        self._groups = BlockGroups(self._pool, block_size, initial_group_blocks)
        self._tables = self._groups.tables
        self._pins = Pins(self._pool)
        self._forks = Forks(self._pool, self._groups, block_size)
        self._prefixes = RequestPrefixes(self._pool, block_size, is_shared=enable_prefix_caching)
        self.copies = (
            None
            if residency is None
            else RequestCopies(residency, self._prefixes, self._tables, block_size)
        )
        self.prefetcher = (
            None
            if residency is None or not enable_prefix_caching
            else Prefetcher(self._pool, self._groups, self._prefixes, residency, block_size)
        )
        # Computed tokens at which the next block of a request is full and can be registered.
        self._next_full: dict[RequestId, int] = {}
        self._num_query_tokens = 0
        self._num_hit_tokens = 0

    @property
    def num_available_blocks(self) -> int:
        """Blocks a request could obtain at most: free, reserved by any request, or evictable."""
        return self._groups.num_available

    @property
    def num_stealable_blocks(self) -> int:
        """Blocks in the reserved tails of all requests."""
        return self._groups.num_reserved

    @property
    def residency(self) -> Residency | None:
        """The tiers below the device, if there are any."""
        return None if self.copies is None else self.copies.residency

    @property
    def usage(self) -> float:
        """Share of the blocks that hold KV of live requests or are pinned (0-1)."""
        return 1 - self.num_available_blocks / self.num_blocks

    @property
    def occupancy(self) -> float:
        """The same with blocks that are kept for their content alone: all that hold something."""
        return 1 - (self._pool.num_empty + self._groups.num_reserved) / self.num_blocks

    @property
    def has_shared_tables(self) -> bool:
        """Whether any request may have to copy before it writes, because of a fork."""
        return bool(self._forks.shared_until)

    def holds(self, request_id: RequestId) -> bool:
        """Return whether the request has a block table."""
        return request_id in self._tables

    def table(self, request_id: RequestId) -> BlockTable:
        """Return the block table of a request that has one."""
        return self._tables[request_id]

    def num_held_blocks(self, request_id: RequestId) -> int:
        """Return the length of the request's table, shared and reserved blocks included."""
        table = self._tables.get(request_id)
        return 0 if table is None else table.num_blocks

    def match_prefix(self, request: Request) -> int:
        """Return how many leading tokens the prefix cache has for a request that holds nothing.

        Whole blocks only, and never all tokens: the last one must be computed to have logits.
        """
        return len(self._find_prefix(request)) * self.block_size

    def blocks_needed(self, request: Request, num_tokens: int) -> int:
        """Return how many of the available blocks it takes to hold `num_tokens` tokens.

        Blocks that count as available also count as needed, although the request may already have
        or find them: its own reserved tail, and prefix hits that are evictable at present. So
        `admit` and `ensure` succeed exactly if this is at most `num_available_blocks`. Copies on
        write come on top.
        """
        table = self._tables.get(request.request_id)
        if table is not None:
            return max(0, self.blocks_for(num_tokens) - table.num_used_blocks)
        return self._num_needed(self._find_prefix(request), num_tokens)

    def admit(self, request: Request, num_running: int, *, load: bool = True) -> int | None:
        """Give a request what the prefix cache has of it, and room for all its tokens.

        A fork, which holds blocks already, keeps them. What lower tiers have of the rest is sent
        for: until it has arrived, the request must not be computed.

        Args:
            request: holds nothing, or was made by `fork`.
            num_running: requests that share the memory at present.
            load: whether to look on lower tiers.

        Returns:
            Leading tokens whose KV is there already or arrives, fewer than all; None, with nothing
            changed, if there is not enough room to be had.
        """
        request_id, num_tokens = request.request_id, request.num_tokens
        if request_id in self._tables:
            num_forked_tokens = min(self._forks.shared_until.get(request_id, 0), num_tokens - 1)
            return num_forked_tokens if self.ensure(request_id, num_tokens) else None

        hits = self._find_prefix(request)
        if self._num_needed(hits, num_tokens) > self.num_available_blocks:
            return None
        max_num_blocks = self.blocks_for(request.max_num_tokens)
        table = self._groups.create(request_id, hits, max_num_blocks)
        self._groups.extend(table, self.blocks_for(num_tokens), num_sharing=num_running + 1)
        self._next_full[request_id] = self._next_full_after(len(hits))
        num_hit_tokens = len(hits) * self.block_size
        if load and self.copies is not None:
            num_hit_tokens += self.copies.load(request, len(hits))
        if self.prefetcher is not None:
            self.prefetcher.forget(request_id)
        if self.enable_prefix_caching and request.num_preemptions == 0:
            self._num_query_tokens += num_tokens
            self._num_hit_tokens += num_hit_tokens
        return num_hit_tokens

    def num_loadable_tokens(self, request: Request) -> int:
        """Return how many tokens `admit` would send for, of a request that holds nothing."""
        if self.copies is None or request.request_id in self._tables:
            return 0
        num_tokens_here = len(self._find_prefix(request)) * self.block_size
        return self.copies.num_loadable_tokens(request, num_tokens_here)

    def short_of_room(self, requests: Iterable[Request]) -> list[Request]:
        """Return those of the requests that hold blocks, but not for all their tokens."""
        tables = self._tables
        return [r for r in requests if len(r.token_ids) > tables[r.request_id].capacity_tokens]

    def ensure(self, request_id: RequestId, num_tokens: int) -> bool:
        """Make room for the first `num_tokens` tokens of a request that holds blocks.

        Returns:
            False, with nothing changed, if there is not enough room to be had.
        """
        table = self._tables[request_id]
        if num_tokens <= table.capacity_tokens:
            return True
        num_blocks = self.blocks_for(num_tokens)
        has_room = num_blocks <= table.num_blocks  # in its reserved tail
        if not has_room and num_blocks - table.num_used_blocks > self.num_available_blocks:
            return False
        self._groups.extend(table, num_blocks, num_sharing=len(self._tables) + 1)
        return True

    def begin_blocks(self, tables: Iterable[BlockTable]) -> None:
        """Let each table use one block more; so many must be available."""
        self._groups.begin_blocks(tables)

    def prepare_write(
        self, request_id: RequestId, first_token: int, num_tokens: int
    ) -> list[tuple[BlockId, BlockId]] | None:
        """Make private the blocks into which `num_tokens` tokens from `first_token` on will go.

        There is something to do only while `has_shared_tables`.

        Returns:
            (source, destination) blocks to copy before the step writes anything, pair by pair in
            the order in which they were returned; None, with nothing changed, if there is not
            enough room to be had.
        """
        return self._forks.prepare_write(request_id, first_token, num_tokens)

    def fork(self, parent_id: RequestId, child_id: RequestId, num_tokens: int) -> None:
        """Let a child hold the blocks with the first `num_tokens` tokens of its parent.

        Both have the same tokens up to there, with their KV in memory. Whoever of them is first to
        write into a block that both hold gets a copy from `prepare_write`.

        Raises:
            IntegrityError: the child holds blocks already, or the parent has no such tokens.
        """
        self._forks.fork(parent_id, child_id, num_tokens)
        num_full_blocks = num_tokens // self.block_size
        if self.enable_prefix_caching:
            self._prefixes.fork(parent_id, child_id, num_full_blocks)
        self._next_full[child_id] = self._next_full_after(num_full_blocks)

    def commit(self, request: Request, num_computed_tokens: int) -> None:
        """Note that the KV of the first `num_computed_tokens` tokens is in memory.

        Blocks that became full can be found by other requests from now on.
        """
        request_id = request.request_id
        next_full = self._next_full[request_id]
        if num_computed_tokens < next_full:
            return
        start, stop = next_full // self.block_size - 1, num_computed_tokens // self.block_size
        full: list[BlockId] = self._tables[request_id].ids[start:stop].tolist()
        self._prefixes.register(request, start, full)
        self._next_full[request_id] = self._next_full_after(stop)

    def free(self, request_id: RequestId) -> None:
        """Let go of all there is of a request, be it only the memory of having looked.

        What is cached of it stays, evictable, until the room is needed.
        """
        self._prefixes.forget(request_id)
        if self.copies is not None:
            self.copies.forget(request_id)
        if self.prefetcher is not None:
            self.prefetcher.forget(request_id)
        self._forks.forget(request_id)
        self._next_full.pop(request_id, None)
        if request_id in self._tables:
            self._groups.drop(request_id)

    def disown(self, request_id: RequestId) -> None:
        """Let nobody else find what a request holds, because its content is not to be trusted."""
        if request_id in self._tables:
            block_ids: list[BlockId] = self._tables[request_id].ids.tolist()
            self._pins.cut(frozenset(block_ids))
            self._pool.unregister(block_ids)

    def adopt(self, token_ids: Sequence[int], cache_salt: str = "") -> int:
        """Take in the KV of a token sequence that was computed elsewhere, as far as it is not here.

        It is cached and evictable: the next request with these tokens finds it.

        Args:
            token_ids: whose full blocks are taken in.
            cache_salt: of the requests that are to find them.

        Returns:
            Leading tokens that are found now, 0 if there was not enough room for all of them.
        """
        here = self._prefixes.find_tokens(token_ids, cache_salt)
        self._pool.share(here)
        num_new = len(token_ids) // self.block_size - len(here)
        try:
            if num_new > self.num_available_blocks:
                return 0
            new = [id_ for extent in self._groups.take(num_new) for id_ in extent.block_ids]
            self._prefixes.register_tokens(token_ids, cache_salt, len(here), new)
            here += new
            return len(here) * self.block_size
        finally:
            self._pool.release(reversed(here))

    def contents(self, request: Request) -> list[BlockHash]:
        """Return what the full blocks of a request's KV are called, on whatever tier."""
        num_full = request.num_computed_tokens // self.block_size
        return self._prefixes.contents(request, num_full * self.block_size)

    def locate(self, contents: Sequence[BlockHash]) -> Counter[Tier]:
        """Return where the leading blocks of a chain would be found now, in tokens by tier."""
        num_here = self._prefixes.num_found(contents)
        tiers = [Tier.DEVICE] * num_here
        if self.copies is not None:
            places = self.copies.residency.find(contents[num_here:])
            tiers += [tier.tier for tier, _ in places]
        return Counter({tier: count * self.block_size for tier, count in Counter(tiers).items()})

    def pin(
        self,
        pin_id: Hashable,
        token_ids: Sequence[int],
        cache_salt: str = "",
        *,
        max_pinned_blocks: int,
    ) -> int:
        """Keep what is cached of a token sequence until `unpin`, whatever happens.

        A pin that is there already moves: what it alone held before is let go.

        Args:
            pin_id: names the pin.
            token_ids: whose leading full blocks to keep, as far as they are cached.
            cache_salt: of the requests that are to find them.
            max_pinned_blocks: most blocks that all pins may hold; the rest must be enough for the
                longest request.

        Returns:
            Tokens kept.

        Raises:
            PinLimitError: that would be too many blocks; nothing has changed.
        """
        block_ids = self._prefixes.find_tokens(token_ids, cache_salt)
        self._pins.put(pin_id, block_ids, max_pinned_blocks)
        return len(block_ids) * self.block_size

    def unpin(self, pin_id: Hashable) -> None:
        """Let go of a pin, if there is one; what it held stays cached until the room is needed."""
        self._pins.drop(pin_id)

    def reset_prefix_cache(self) -> None:
        """Forget all cached content that no request and no pin holds."""
        self._pool.empty_evictable()
        if self.copies is not None:
            self.copies.clear()

    def stats(self) -> KVCacheStats:
        """Return where the blocks are at present."""
        num_extents = sum(len(table.extents) for table in self._tables.values())
        num_pinned = self._pins.num_held_by_pins_alone
        num_table_blocks = sum(table.num_blocks for table in self._tables.values())
        return KVCacheStats(
            num_blocks=self.num_blocks,
            num_free=self._pool.num_empty,
            num_used=self.num_blocks - self.num_available_blocks - num_pinned,
            num_reserved=self._groups.num_reserved,
            num_evictable=self._pool.num_evictable,
            num_cached=self._pool.num_cached,
            mean_extent_blocks=num_table_blocks / num_extents if num_extents else 0.0,
            num_query_tokens=self._num_query_tokens,
            num_hit_tokens=self._num_hit_tokens,
            num_pinned=num_pinned,
        )

    def block_map(self) -> list[BlockRun]:
        """Return where all blocks are, by address, as runs that never cross a group's border."""
        return block_runs(self.num_blocks, self._tables, self._pool.cached_ids, self._pins.counts)

    def check_integrity(self) -> None:
        """Recount everything by brute force.

        Raises:
            IntegrityError: an invariant does not hold.
        """
        self._pool.check_integrity()
        self._pins.check_integrity()
        held = self._pins.counts
        if self.prefetcher is not None:
            held = held + self.prefetcher.held
        self._groups.check_integrity(held)
        self._forks.check_integrity()
        if self.copies is not None:
            self.copies.check_integrity()
        if self._next_full.keys() != self._tables.keys():
            raise IntegrityError("the requests that commit are not those that hold blocks")

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def _num_needed(self, hits: Sequence[BlockId], num_tokens: int) -> int:
        """Return `blocks_needed` for a request that holds nothing and finds `hits`."""
        num_blocks = self.blocks_for(num_tokens)
        return num_blocks - sum(self._pool.ref_count(hit) > 0 for hit in hits[:num_blocks])

    def _next_full_after(self, num_full_blocks: int) -> int:
        """Return the entry of `_next_full` once that many blocks are registered."""
        if not self.enable_prefix_caching:
            return sys.maxsize
        return (num_full_blocks + 1) * self.block_size

    def _find_prefix(self, request: Request) -> list[BlockId]:
        return self._prefixes.find(request) if self.enable_prefix_caching else []
