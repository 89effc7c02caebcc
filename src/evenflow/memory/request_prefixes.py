"""What the prefix cache has of each request.

    request  a  |h0 h1 h2 ...   its hash chain, known as far as somebody has looked
                 │  │  │
    pool         7  9  -        the blocks with that content: the first gap ends the prefix

Knows: the hash chains of requests, from the first look until `forget`.
Does not know: block tables; who holds a block.
"""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.core.ids import BlockId, RequestId
from evenflow.core.request import Request
from evenflow.memory.block_pool import BlockPool
from evenflow.memory.prefix_cache import HashChain, root_hash


class RequestPrefixes:
    """Finds and registers content, request by request.

    Args:
        pool: knows which block carries which content.
        block_size: tokens per block.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._chains: dict[RequestId, HashChain] = {}

    def __len__(self) -> int:
        return len(self._chains)

    def find(self, request: Request) -> list[BlockId]:
        """Return the longest chain of cached blocks that leaves a token to compute.

        A request whose prompt is to be scored or pooled finds none until it has been: all of it has
        to be computed.
        """
        chain = self._chains.get(request.request_id)
        if chain is None:
            chain = HashChain(self._block_size, root_hash(request.cache_salt))
            self._chains[request.request_id] = chain
        wants_all = request.pooling is not None or request.sampling.prompt_logprobs is not None
        if wants_all and request.num_output_tokens == 0:
            return []
        return self._find(chain, request.token_ids, request.num_tokens - 1)

    def find_tokens(self, token_ids: Sequence[int], cache_salt: str) -> list[BlockId]:
        """Return the cached blocks of a token sequence that is no request's."""
        chain = HashChain(self._block_size, root_hash(cache_salt))
        return self._find(chain, token_ids, len(token_ids))

    def register(self, request: Request, first: int, block_ids: Sequence[BlockId]) -> None:
        """Let the request's full blocks from number `first` on be found."""
        chain = self._chains[request.request_id]
        for index, block_id in enumerate(block_ids, first):
            self._pool.register(chain.hash_at(index, request.token_ids), block_id)

    def register_tokens(
        self, token_ids: Sequence[int], cache_salt: str, first: int, block_ids: Sequence[BlockId]
    ) -> None:
        """Let full blocks of a token sequence that is no request's be found, from `first` on."""
        chain = HashChain(self._block_size, root_hash(cache_salt))
        for index, block_id in enumerate(block_ids, first):
            self._pool.register(chain.hash_at(index, token_ids), block_id)

    def fork(self, parent_id: RequestId, child_id: RequestId, num_blocks: int) -> None:
        """Let a child begin with the same `num_blocks` full blocks as its parent."""
        self._chains[child_id] = self._chains[parent_id].fork(num_blocks)

    def forget(self, request_id: RequestId) -> None:
        """Drop what is known of a request, if anything is."""
        self._chains.pop(request_id, None)

    def _find(self, chain: HashChain, token_ids: Sequence[int], num_tokens: int) -> list[BlockId]:
        """Return the cached blocks of the first `num_tokens` tokens, up to the first gap."""
        found: list[BlockId] = []
        for index in range(num_tokens // self._block_size):
            block_id = self._pool.find(chain.hash_at(index, token_ids))
            if block_id is None:
                break
            found.append(block_id)
        return found
