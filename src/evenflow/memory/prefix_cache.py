"""Content addresses: the name of a full block says which tokens lie in it and before it.

    root(salt) --> h0 = H(root, tokens 0..15) --> h1 = H(h0, tokens 16..31) --> ...

KV depends on every token before it, and so does the hash: equal hashes mean interchangeable
blocks. Requests with different salts have different roots and never meet.

Knows: hashes of full blocks, and which block carries which.
Does not know: reference counts; whether a block may be dropped.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import NewType

from evenflow.core.errors import IntegrityError
from evenflow.core.ids import BlockId

BlockHash = NewType("BlockHash", bytes)

_HASH_BYTES = 16


def root_hash(salt: str) -> BlockHash:
    """Return the parent of every first block under `salt`."""
    # The personalisation keeps roots apart from block hashes, whatever the salt spells.
    return BlockHash(blake2b(salt.encode(), digest_size=_HASH_BYTES, person=b"root").digest())


def block_hash(parent: bytes, token_ids: Sequence[int]) -> BlockHash:
    """Return the hash of a full block with these tokens behind the block hashed `parent`."""
    return BlockHash(
        blake2b(parent + array("i", token_ids).tobytes(), digest_size=_HASH_BYTES).digest()
    )


class HashChain:
    """The hashes of one request's full blocks, each computed when first asked for.

    Relies on token ids that only ever grow at the end.

    Args:
        block_size: tokens per block.
        root: parent of the first block.
        hashes: those already known.

    Attributes:
        root: parent of the first block.
    """

    __slots__ = ("_block_size", "_hashes", "root")

    def __init__(self, block_size: int, root: BlockHash, hashes: Sequence[BlockHash] = ()) -> None:
        self._block_size = block_size
        self.root = root
        self._hashes = list(hashes)

    def hash_at(self, index: int, token_ids: Sequence[int]) -> BlockHash:
        """Return the hash of full block `index` of `token_ids`."""
        hashes, size = self._hashes, self._block_size
        while len(hashes) <= index:
            first = len(hashes) * size
            parent = hashes[-1] if hashes else self.root
            hashes.append(block_hash(parent, token_ids[first : first + size]))
        return hashes[index]

    def fork(self, num_blocks: int) -> HashChain:
        """Return a chain of its own that begins with the same `num_blocks` blocks."""
        return HashChain(self._block_size, self.root, self._hashes[:num_blocks])


class PrefixCache:
    """A one-to-one map between hashes and the blocks that carry their content."""

    def __init__(self) -> None:
        self._block_of: dict[BlockHash, BlockId] = {}
        self._hash_of: dict[BlockId, BlockHash] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    @property
    def block_ids(self) -> Collection[BlockId]:
        """The blocks that are known."""
        return self._hash_of.keys()

    def find(self, content: BlockHash) -> BlockId | None:
        """Return the block with this content, if there is one."""
        return self._block_of.get(content)

    def hash_of(self, block_id: BlockId) -> BlockHash | None:
        """Return the hash under which the block is known, if it is."""
        return self._hash_of.get(block_id)

    def insert(self, content: BlockHash, block_id: BlockId) -> bool:
        """Make the block known; returns False, changing nothing, if the content already is."""
        if content in self._block_of:
            return False
        self._block_of[content] = block_id
        self._hash_of[block_id] = content
        return True

    def remove(self, content: BlockHash) -> BlockId:
        """Forget the content and return the block that carried it."""
        block_id = self._block_of.pop(content)
        del self._hash_of[block_id]
        return block_id

    def check_integrity(self) -> None:
        """Check that the two maps are each other's inverse.

        Raises:
            IntegrityError: they are not.
        """
        if {block_id: content for content, block_id in self._block_of.items()} != self._hash_of:
            raise IntegrityError("hash to block and block to hash are not each other's inverse")
