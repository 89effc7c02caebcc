"""The copies of each request's KV on lower tiers, and what they are worth to it.

    running   copies may save writing later, and are worth less than what others have only here
       │ leave             ▲ back
       ▼                   │
    away      all of them are awaited, by priority
    ended     its session may have another turn, or somebody come with the same beginning

Knows: how a request's blocks are called, and how many of them were written back already.
Does not know: who leaves or returns; the device's pool.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId, RequestId
from evenflow.core.request import Request
from evenflow.memory.block_table import BlockTable
from evenflow.memory.prefix_cache import BlockHash
from evenflow.memory.request_prefixes import RequestPrefixes
from evenflow.memory.residency import Place, Residency, Stored
from evenflow.memory.worth import (
    CHANCE_OF_DEPARTURE,
    CHANCE_OF_SESSION,
    CHANCE_OF_STRANGER,
    Worth,
    awaited,
    hoped_for,
)


class RequestCopies:
    """Stores, finds and loads what belongs to a request.

    Args:
        residency: where copies are.
        prefixes: what content is called.
        tables: the block tables of requests that hold blocks.
        block_size: tokens per block.

    Attributes:
        residency: where copies are.
    """

    def __init__(
        self,
        residency: Residency,
        prefixes: RequestPrefixes,
        tables: Mapping[RequestId, BlockTable],
        block_size: int,
    ) -> None:
        self.residency = residency
        self._prefixes = prefixes
        self._tables = tables
        self._block_size = block_size
        # Leading blocks that were full and written back when last looked at.
        self._num_written_back: dict[RequestId, int] = {}
        # The copy of a last block that was not full when its request left.
        self._unfull: dict[RequestId, BlockHash] = {}
        # How requests left that are away.
        self._departures: dict[RequestId, Stored] = {}
        # The priorities of requests that are away, as far as their copies do not know them yet.
        self._reranked: dict[RequestId, int] = {}
        # Of which leading blocks requests that live have said what copies are worth to them.
        self._claimed: dict[RequestId, list[BlockHash]] = {}

    def num_dirty(self, request: Request) -> int:
        """Return how many blocks of a request's KV have no copy on the host."""
        contents = self._prefixes.contents(request, request.num_computed_tokens)
        return len(contents) - self.residency.num_clean(contents)

    def leave(self, request: Request) -> Stored:
        """Copy to the host what is not there of a request that loses its place on the device.

        What it holds may be given away at once.
        """
        request_id, num_tokens = request.request_id, request.num_computed_tokens
        self.drop_unfull(request_id)
        contents = self._prefixes.contents(request, num_tokens)
        if contents and num_tokens % self._block_size:
            self._unfull[request_id] = contents[-1]
        stored = self._departures[request_id] = self._store(request, contents)
        self._claimed[request_id] = contents
        self._await(request_id, request.priority)
        return stored

    def rerank(self, request: Request) -> None:
        """Take in that a request has another priority; it counts once somebody needs room."""
        if request.request_id in self._departures:
            self._reranked[request.request_id] = request.priority

    def back(self, request: Request, now_s: float) -> str | None:
        """Note that a request has its KV on the device, as far as there is any.

        Returns:
            Why what it stored when it left was not written, if so.
        """
        stored = self._departures.pop(request.request_id, None)
        if stored is None:
            return None
        self._reranked.pop(request.request_id, None)
        self._claim_spare(request, self._claimed[request.request_id], now_s)
        return stored.failure

    def keep(self, request: Request) -> Stored:
        """Copy to the host the full blocks that are not there of a request that has ended.

        What it holds may be given away at once.
        """
        num_full = request.num_computed_tokens // self._block_size
        return self._store(request, self._prefixes.contents(request, num_full * self._block_size))

    def end(self, request: Request, now_s: float) -> None:
        """Say what the copies of a request are worth now that it has ended.

        Args:
            request: may still hold its blocks.
            now_s: the time.
        """
        request_id = request.request_id
        self.drop_unfull(request_id)
        self._departures.pop(request_id, None)
        self._reranked.pop(request_id, None)
        claimed = self._claimed.pop(request_id, [])
        self.residency.host.withdraw(claimed, request_id)
        contents = self._prefixes.contents(request, request.num_computed_tokens)
        contents = max(contents, claimed, key=len)
        owner, chance = None, CHANCE_OF_STRANGER
        if request.session_id is not None:
            owner, chance = (request.tenant_id, request.session_id), CHANCE_OF_SESSION
        worth = hoped_for(self._block_size, chance, -request.priority, now_s)
        self.residency.host.appraise(contents, worth, owner)

    def drop_unfull(self, request_id: RequestId) -> None:
        """Give up the copy of a last block that was not full when its request left the last time.

        The request has gone on since, and its chain is to go on in that place.
        """
        stale = self._unfull.pop(request_id, None)
        if stale is not None:
            self.residency.distrust([stale])

    def write_back(self, request: Request, max_blocks: int, now_s: float) -> int:
        """Copy full blocks to the host while the request goes on; return how many.

        Only what is worth less makes room: these are copies of what is on the device as well.
        """
        first = self._num_written_back.get(request.request_id, 0)
        stop = min(request.num_computed_tokens // self._block_size, first + max_blocks)
        if stop <= first:
            return 0
        contents = self._prefixes.contents(request, stop * self._block_size, first)
        self._num_written_back[request.request_id] = stop
        if not contents:
            return 0
        block_ids = self._tables[request.request_id].ids[first:stop].tolist()
        after = None
        if first:
            (after,) = self._prefixes.contents(request, first * self._block_size, first - 1)
        worth = self._spare_worth(request, now_s)
        self._before_store(len(contents))
        stored = self.residency.store(
            contents, block_ids, request.tenant_id, after=after, below=worth
        )
        self._claimed.setdefault(request.request_id, [])[first:stop] = contents
        self._claim_spare(request, contents, now_s)
        return stored.num_written

    def num_loadable_tokens(self, request: Request, num_tokens_here: int) -> int:
        """Return how many tokens `load` would bring behind those that are on the device."""
        num_blocks_here = num_tokens_here // self._block_size
        stop = num_blocks_here + len(self._find(request, num_blocks_here))
        return min(stop * self._block_size, request.num_tokens - 1) - num_tokens_here

    def load(self, request: Request, num_blocks_here: int) -> int:
        """Send for what lower tiers have behind the leading blocks of a request; it has room.

        Returns:
            How many tokens arrive.
        """
        places = self._find(request, num_blocks_here)
        if not places:
            return 0
        stop = num_blocks_here + len(places)
        num_tokens_here = num_blocks_here * self._block_size
        block_ids: list[BlockId] = (
            self._tables[request.request_id].ids[num_blocks_here:stop].tolist()
        )
        self.residency.load(places, block_ids, request.request_id, num_tokens_here)
        return min(stop * self._block_size, request.num_tokens - 1) - num_tokens_here

    def is_arriving(self, request_id: RequestId) -> bool:
        """Return whether KV of a request is on its way to the device."""
        return request_id in self.residency.arrivals

    def devalue(
        self, session: Hashable, contents: Sequence[BlockHash], priority: int, last_use_s: float
    ) -> None:
        """Say that a session is not expected to come back for a chain.

        Args:
            session: its tenant and id.
            contents: the chain.
            priority: at which it was kept.
            last_use_s: when its last turn ended.
        """
        host = self.residency.host
        host.withdraw(contents, session)
        host.appraise(
            contents, hoped_for(self._block_size, CHANCE_OF_STRANGER, -priority, last_use_s)
        )

    def disown(self, request: Request) -> None:
        """Let nobody find copies of a request, because its content is not to be trusted."""
        self.residency.distrust(self._prefixes.contents(request, request.num_tokens))

    def forget(self, request_id: RequestId) -> None:
        """Drop what is known of a request; its copies stay as long as they are worth it."""
        self._num_written_back.pop(request_id, None)
        self.residency.forget(request_id)

    def clear(self) -> None:
        """Forget all copies that are neither read nor written."""
        self.residency.clear()

    def check_integrity(self) -> None:
        """Check that only requests which hold blocks expect any, and the tiers themselves.

        Raises:
            IntegrityError: an invariant does not hold.
        """
        self.residency.check_integrity()
        if not self.residency.arrivals.keys() <= self._tables.keys():
            raise IntegrityError("KV is on its way for a request that has no room for it")

    def _find(self, request: Request, num_blocks_here: int) -> list[Place]:
        """Return where what follows the request's leading blocks can be loaded from."""
        contents = self._prefixes.contents(request, request.num_tokens - 1, num_blocks_here)
        return self.residency.find(contents)

    def _store(self, request: Request, contents: Sequence[BlockHash]) -> Stored:
        self._before_store(len(contents))
        block_ids = self._tables[request.request_id].ids[: len(contents)].tolist()
        return self.residency.store(contents, block_ids, request.tenant_id)

    def _before_store(self, num_blocks: int) -> None:
        """Have the copies of those who are away ranked, if some may have to make room."""
        if self._reranked and self.residency.host.num_ready < num_blocks:
            for request_id, priority in self._reranked.items():
                self._await(request_id, priority)
            self._reranked.clear()

    def _await(self, request_id: RequestId, priority: int) -> None:
        """Say that a request comes back for its copies."""
        worth = awaited(self._block_size, -priority)
        self.residency.host.appraise(self._claimed[request_id], worth, request_id)

    def _claim_spare(self, request: Request, contents: Sequence[BlockHash], now_s: float) -> None:
        worth = self._spare_worth(request, now_s)
        host = self.residency.host
        host.appraise(contents, worth, request.request_id, is_chain=False)

    def _spare_worth(self, request: Request, now_s: float) -> Worth:
        """Return what a copy is worth of what a running request has on the device."""
        return hoped_for(self._block_size, CHANCE_OF_DEPARTURE, -request.priority, now_s)
