"""Loads blocks of a request that holds nothing yet, so that it finds them when it comes.

They become cached content like any other: whoever needs the room may have it. What was lost that
way is not loaded ahead again, or two that wait would take turns in it for ever.

Knows: what is being loaded ahead, and into which blocks.
Does not know: who is next.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from evenflow.core.ids import BlockId, RequestId
from evenflow.core.request import Request
from evenflow.memory.block_groups import BlockGroups
from evenflow.memory.block_pool import BlockPool
from evenflow.memory.prefix_cache import BlockHash
from evenflow.memory.request_prefixes import RequestPrefixes
from evenflow.memory.residency import Arrival, Residency


@dataclass(slots=True, frozen=True)
class _Ahead:
    contents: list[BlockHash]
    block_ids: list[BlockId]
    arrival: Arrival


class Prefetcher:
    """Loads ahead.

    Args:
        pool: where content becomes known.
        groups: where blocks are taken from.
        prefixes: what content is called.
        residency: where copies are.
        block_size: tokens per block.
    """

    def __init__(
        self,
        pool: BlockPool,
        groups: BlockGroups,
        prefixes: RequestPrefixes,
        residency: Residency,
        block_size: int,
    ) -> None:
        self._pool = pool
        self._groups = groups
        self._prefixes = prefixes
        self._residency = residency
        self._block_size = block_size
        self._ahead: list[_Ahead] = []
        # Leading blocks that were here or loaded ahead, of requests that have not come yet.
        self._num_sent: dict[RequestId, int] = {}

    @property
    def held(self) -> Counter[BlockId]:
        """The blocks that are being loaded into."""
        return Counter(block_id for ahead in self._ahead for block_id in ahead.block_ids)

    def start(self, request: Request, max_blocks: int) -> None:
        """Send for full blocks of a request that holds nothing, if there is room to spare.

        Everybody who holds blocks is left a block to grow into.
        """
        num_spare = self._groups.num_available - len(self._groups.tables)
        if num_spare <= 0 or request.request_id in self._groups.tables:
            return
        here = self._prefixes.find(request)
        num_blocks_here = len(here)
        num_full = (request.num_tokens - 1) // self._block_size
        stop = min(num_full, num_blocks_here + max_blocks, num_spare)
        num_sent = self._num_sent.get(request.request_id, 0)
        if stop <= num_blocks_here or num_blocks_here < num_sent:
            return
        contents = self._prefixes.contents(request, stop * self._block_size, num_blocks_here)
        places = self._residency.find(contents)
        if not places:
            return
        self._num_sent[request.request_id] = num_blocks_here + len(places)
        self._pool.share(here)
        extents = self._groups.take(len(places))
        self._pool.release(reversed(here))
        block_ids = [block_id for extent in extents for block_id in extent.block_ids]
        arrival = self._residency.load(places, block_ids)
        self._ahead.append(_Ahead(contents[: len(places)], block_ids, arrival))

    def forget(self, request_id: RequestId) -> None:
        """A request has come, or will not."""
        self._num_sent.pop(request_id, None)

    def settle(self) -> None:
        """Let what has arrived be found."""
        for ahead in [ahead for ahead in self._ahead if not ahead.arrival.num_pending]:
            self._ahead.remove(ahead)
            if ahead.arrival.failure is None:
                for content, block_id in zip(ahead.contents, ahead.block_ids, strict=True):
                    self._pool.register(content, block_id)
            self._pool.release(reversed(ahead.block_ids))
