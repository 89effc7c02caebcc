"""The copies of each request's KV on lower tiers.

Knows: how a request's blocks are called, and how many of them were written back already.
Does not know: who leaves or returns; the device's pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId, RequestId
from evenflow.core.request import Request
from evenflow.memory.block_table import BlockTable
from evenflow.memory.lower_tier import Worth
from evenflow.memory.prefix_cache import BlockHash
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

    def num_dirty(self, request: Request) -> int:
        """Return how many blocks of a request's KV have no copy on the host."""
        contents = self._prefixes.contents(request, request.num_computed_tokens)
        return len(contents) - self.residency.num_clean(contents)

    def store(self, request: Request) -> Stored:
        """Copy to the host what is not there of a request that is about to leave, or ends.

        What it holds may be given away at once.
        """
        self.drop_unfull(request.request_id)
        num_tokens = request.num_computed_tokens
        if request.is_finished:
            num_tokens -= num_tokens % self._block_size  # nobody will ask for the rest
        contents = self._prefixes.contents(request, num_tokens)
        if contents and num_tokens % self._block_size:
            self._unfull[request.request_id] = contents[-1]
        table = self._tables[request.request_id]
        stored = self.residency.store(
            contents, table.ids[: len(contents)].tolist(), request.tenant_id, self._worth(request)
        )
        if not request.is_finished:
            self._departures[request.request_id] = stored
        return stored

    def loss(self, request_id: RequestId) -> str | None:
        """Return why what a request stored when it left was not written, if so; it is back now."""
        stored = self._departures.pop(request_id, None)
        return None if stored is None else stored.failure

    def drop_unfull(self, request_id: RequestId) -> None:
        """Give up the copy of a last block that was not full when its request left the last time.

        The request has gone on since, and its chain is to go on in that place.
        """
        stale = self._unfull.pop(request_id, None)
        if stale is not None:
            self.residency.distrust([stale])

    def write_back(self, request: Request, max_blocks: int) -> int:
        """Copy full blocks to the host while the request goes on; return how many."""
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
        return self.residency.store(
            contents, block_ids, request.tenant_id, self._worth(request), after=after
        ).num_written

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

    def devalue(self, contents: Sequence[BlockHash], priority: int) -> None:
        """Say that nobody is known to come back for a chain, which was kept at a priority."""
        num_tokens = CHANCE_OF_STRANGER * self._block_size
        self.residency.host.appraise(contents, Worth(urgency=-priority, num_tokens=num_tokens))

    def appraise(self, request: Request) -> None:
        """Say anew what the copies of a request are worth, because it has ended."""
        contents = self._prefixes.contents(request, request.num_computed_tokens)
        self.residency.host.appraise(contents, self._worth(request))

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

    def _worth(self, request: Request) -> Worth:
        chance = 1.0
        if request.is_finished:
            chance = CHANCE_OF_SESSION if request.session_id else CHANCE_OF_STRANGER
        return Worth(
            is_awaited=not request.is_finished,
            urgency=-request.priority,
            num_tokens=chance * self._block_size,
        )
