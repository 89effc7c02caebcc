"""What the prefix cache has of each request.

    request  a  |h0 h1 h2 ...   its hash chain, known as far as somebody has looked
                 │  │  │
    pool         7  9  -        the blocks with that content: the first gap ends the prefix

Knows: the hash chains of requests, from the first look until `forget`.
Does not know: block tables; who holds a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

from evenflow.core.ids import BlockId, RequestId
from evenflow.core.request import Request
from evenflow.memory.block_pool import BlockPool
from evenflow.memory.prefix_cache import BlockHash, HashChain, block_hash, root_hash


class RequestPrefixes:
    """Finds and registers content, request by request.

    Args:
        pool: knows which block carries which content.
        block_size: tokens per block.
        is_shared: whether requests with equal prefixes find each other's blocks. Otherwise content
            is found again by its own request, and by the turns of its session.
    """

    def __init__(self, pool: BlockPool, block_size: int, *, is_shared: bool = True) -> None:
        self._pool = pool
        self._block_size = block_size
        self._is_shared = is_shared
        self._chains: dict[RequestId, HashChain] = {}

    def __len__(self) -> int:
        return len(self._chains)

    def find(self, request: Request) -> list[BlockId]:
        """Return the longest chain of cached blocks that leaves a token to compute.

        A request whose prompt is to be scored or pooled finds none until it has been: all of it has
        to be computed.
        """
        if _must_compute_all(request):
            return []
        return self._find(self._chain(request), request.token_ids, request.num_tokens - 1)

    def contents(self, request: Request, num_tokens: int, first: int = 0) -> list[BlockHash]:
        """Return the hashes of the blocks that hold a request's first tokens, from `first` on.

        The last one may be of a block that is not full. There are none of a request that has to
        compute its whole prompt in any case.
        """
        if _must_compute_all(request):
            return []
        chain, size = self._chain(request), self._block_size
        num_full, num_rest = divmod(num_tokens, size)
        hashes = [chain.hash_at(index, request.token_ids) for index in range(first, num_full)]
        if num_rest:
            parent = chain.hash_at(num_full - 1, request.token_ids) if num_full else chain.root
            hashes.append(block_hash(parent, request.token_ids[num_tokens - num_rest : num_tokens]))
        return hashes

    def num_found(self, contents: Iterable[BlockHash]) -> int:
        """Return how many leading blocks of a chain are cached."""
        return sum(
            1 for _ in takewhile(lambda content: self._pool.find(content) is not None, contents)
        )

    def find_tokens(self, token_ids: Sequence[int], cache_salt: str) -> list[BlockId]:
        """Return the cached blocks of a token sequence that is no request's."""
        chain = HashChain(self._block_size, root_hash(cache_salt))
        return self._find(chain, token_ids, len(token_ids))

    def register(self, request: Request, first: int, block_ids: Sequence[BlockId]) -> None:
        """Let the request's full blocks from number `first` on be found."""
        chain = self._chain(request)
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
        chain = self._chains.get(parent_id)
        if chain is not None:
            self._chains[child_id] = chain.fork(num_blocks)

    def forget(self, request_id: RequestId) -> None:
        """Drop what is known of a request, if anything is."""
        self._chains.pop(request_id, None)

    def _chain(self, request: Request) -> HashChain:
        chain = self._chains.get(request.request_id)
        if chain is None:
            salt = request.cache_salt
            if not self._is_shared:
                salt += f"\x1f{request.tenant_id}\x1f{request.session_id or request.request_id}"
            chain = HashChain(self._block_size, root_hash(salt))
            self._chains[request.request_id] = chain
        return chain

    def _find(self, chain: HashChain, token_ids: Sequence[int], num_tokens: int) -> list[BlockId]:
        """Return the cached blocks of the first `num_tokens` tokens, up to the first gap."""
        found: list[BlockId] = []
        for index in range(num_tokens // self._block_size):
            block_id = self._pool.find(chain.hash_at(index, token_ids))
            if block_id is None:
                break
            found.append(block_id)
        return found


def _must_compute_all(request: Request) -> bool:
    """Return whether a request's prompt is to be scored or pooled, and was not yet."""
    wants_all = request.pooling is not None or request.sampling.prompt_logprobs is not None
    return wants_all and request.num_output_tokens == 0
