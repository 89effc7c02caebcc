"""The copies of each request's KV on lower tiers.

Knows: how a request's blocks are called, and how many of them were written back already.
Does not know: who leaves or returns; the device's pool.
"""

from __future__ import annotations

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.memory.block_table import BlockTable
from evenflow.memory.lower_tier import Worth
from evenflow.memory.request_prefixes import RequestPrefixes
from evenflow.memory.residency import Place, Residency, Stored

CHANCE_OF_SESSION = 0.5
"""That a session has another turn while its copies are there."""

CHANCE_OF_STRANGER = 0.1
"""That somebody comes with the prefix of a request that has ended."""


class RequestCopies:
    """Stores, finds and loads what belongs to a request.

    Args:
        residency: where copies are.
        prefixes: what content is called.
        block_size: tokens per block.
    """

    def __init__(self, residency: Residency, prefixes: RequestPrefixes, block_size: int) -> None:
        self._residency = residency
        self._prefixes = prefixes
        self._block_size = block_size
        # Leading blocks that were full and written back when last looked at.
        self._num_written_back: dict[RequestId, int] = {}

    def num_dirty(self, request: Request) -> int:
        """Return how many blocks of a request's KV have no copy on the host."""
        contents = self._prefixes.contents(request, request.num_computed_tokens)
        return len(contents) - self._residency.num_clean(contents)

    def store(self, request: Request, table: BlockTable) -> Stored:
        """Copy to the host what is not there of a request that is about to leave, or ends."""
        contents = self._prefixes.contents(request, request.num_computed_tokens)
        return self._residency.store(
            contents, table.ids[: len(contents)].tolist(), request.tenant_id, self._worth(request)
        )

    def write_back(self, request: Request, table: BlockTable, max_blocks: int) -> int:
        """Copy full blocks to the host while the request goes on; return how many."""
        first = self._num_written_back.get(request.request_id, 0)
        stop = min(request.num_computed_tokens // self._block_size, first + max_blocks)
        if stop <= first:
            return 0
        contents = self._prefixes.contents(request, stop * self._block_size, first)
        self._num_written_back[request.request_id] = stop
        if not contents:
            return 0
        block_ids = table.ids[first:stop].tolist()
        worth = self._worth(request)
        return self._residency.store(contents, block_ids, request.tenant_id, worth).num_written

    def find(self, request: Request, num_blocks_here: int) -> list[Place]:
        """Return where what follows the request's leading blocks can be loaded from."""
        contents = self._prefixes.contents(request, request.num_tokens - 1, num_blocks_here)
        return self._residency.find(contents)

    def appraise(self, request: Request) -> None:
        """Say anew what the copies of a request are worth, because it has ended."""
        contents = self._prefixes.contents(request, request.num_computed_tokens)
        self._residency.host.appraise(contents, self._worth(request))

    def forget(self, request_id: RequestId) -> None:
        """Drop what is known of a request; its copies stay as long as they are worth it."""
        self._num_written_back.pop(request_id, None)
        self._residency.forget(request_id)

    def _worth(self, request: Request) -> Worth:
        chance = 1.0
        if request.is_finished:
            chance = CHANCE_OF_SESSION if request.session_id else CHANCE_OF_STRANGER
        return Worth(
            is_awaited=not request.is_finished,
            urgency=-request.priority,
            num_tokens=chance * self._block_size,
        )
