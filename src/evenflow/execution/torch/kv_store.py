"""The tensor that holds every block of keys and values on one device.

Knows: where a block's bytes lie, in either layout.
Does not know: which blocks are in use, or whose they are.

Invariant:
    `keys(layer)` and `values(layer)` have the same shape in both layouts; only strides differ.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from evenflow.core.errors import KVMemoryError
from evenflow.execution.torch.huge_pages import reserve
from evenflow.execution.torch.kv_rows import encode, row_width
from evenflow.memory.extents import Extent

KVLayout = Literal["block_first", "layer_first"]


class KVStore:
    """Keys and values of all layers, in blocks of `block_size` tokens.

    ```
    block_first  (num_blocks, num_layers, 2, num_kv_heads, block_size, row_width)
    layer_first  (num_layers, 2, num_blocks, num_kv_heads, block_size, row_width)
    ```

    A row is one head's key or value for one token; how it lies there says `kv_rows`.

    A block-first block is one contiguous range over all layers, so moving a run of them is a single
    copy. Memory is reserved, not touched: a page costs nothing until a token is stored in it. Only
    if it is pinned, so that CUDA can read and write it by itself, it is all there from the start.

    Attributes:
        data: the storage, shaped by the layout.
        blocks: the same memory, always indexed
            (num_blocks, num_layers, 2, num_kv_heads, block_size, row_width).
        num_pieces: ranges of memory that a run of blocks takes: 1 block-first, 2 * num_layers
            layer-first.
        piece_bytes: bytes that one block has in each of them.
    """

    def __init__(
        self,
        num_blocks: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        block_size: int,
        layout: KVLayout = "block_first",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        pinned: bool = False,
    ) -> None:
        self.num_blocks = num_blocks
        self.num_layers = num_layers
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.block_size = block_size
        self.layout: KVLayout = layout
        block = (num_kv_heads, block_size, row_width(head_dim, dtype))
        if layout == "block_first":
            self.data = _reserve((num_blocks, num_layers, 2, *block), dtype, torch.device(device))
            self.blocks = self.data
            self.num_pieces = 1
        else:
            self.data = _reserve((num_layers, 2, num_blocks, *block), dtype, torch.device(device))
            self.blocks = self.data.permute(2, 0, 1, 3, 4, 5)
            self.num_pieces = 2 * num_layers
        block_bytes = self.bytes_per_block(num_layers, num_kv_heads, head_dim, block_size, dtype)
        self.piece_bytes = block_bytes // self.num_pieces
        if pinned:
            _pin(self)
        self._keys = tuple(self.blocks[:, layer, 0] for layer in range(num_layers))
        self._values = tuple(self.blocks[:, layer, 1] for layer in range(num_layers))

    @staticmethod
    def bytes_per_block(
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
    ) -> int:
        """Return the bytes one block takes over all layers, keys and values together."""
        row_bytes = row_width(head_dim, dtype) * dtype.itemsize
        return 2 * num_layers * num_kv_heads * block_size * row_bytes

    def keys(self, layer: int) -> torch.Tensor:
        """Return a layer's keys: (num_blocks, num_kv_heads, block_size, row_width), a view."""
        return self._keys[layer]

    def values(self, layer: int) -> torch.Tensor:
        """Return a layer's values: (num_blocks, num_kv_heads, block_size, row_width), a view."""
        return self._values[layer]

    def pieces(self, run: Extent) -> Sequence[torch.Tensor]:
        """Return the memory of a run of blocks as contiguous views, `num_pieces` of them."""
        if self.layout == "block_first":
            return (self.data[run.start : run.stop],)
        return self.data.flatten(0, 1)[:, run.start : run.stop].unbind()

    def addresses(self, block_id: int) -> range:
        """Return where the pieces of a run of blocks begin that begins with `block_id`."""
        first = self.data.data_ptr() + block_id * self.piece_bytes
        stride = self.num_blocks * self.piece_bytes
        return range(first, first + self.num_pieces * stride, stride)

    def write(
        self, layer: int, k: torch.Tensor, v: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        """Store the keys and values of some tokens.

        Args:
            layer: which layer they belong to.
            k: (num_tokens, num_kv_heads, head_dim).
            v: (num_tokens, num_kv_heads, head_dim).
            slot_mapping: (num_tokens,), int64, `block_id * block_size + offset`.
        """
        block_ids = slot_mapping // self.block_size
        offsets = slot_mapping % self.block_size
        self._keys[layer][block_ids, :, offsets] = encode(k, self.data.dtype)
        self._values[layer][block_ids, :, offsets] = encode(v, self.data.dtype)

    def copy_blocks(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy whole blocks (source, destination) over all layers, in the order given."""
        for source, destination in pairs:
            self.blocks[destination].copy_(self.blocks[source])

    def poison(self, block_ids: Iterable[int]) -> None:
        """Fill blocks with NaN, so that reading a freed one shows."""
        nan = -1 if self.data.dtype == torch.int8 else math.nan  # a float of all ones is NaN
        for block_id in block_ids:
            self.blocks[block_id].fill_(nan)


def _reserve(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return uninitialised memory, on a CPU in huge pages.

    Scattered blocks make attention miss the TLB: huge pages took a quarter off its time.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return reserve(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


def _pin(store: KVStore) -> None:
    """Keep a store's memory in its place for as long as the store lives.

    Torch's own pinned memory would be rounded up to a power of two.

    Raises:
        KVMemoryError: the system does not let that much be pinned.
    """
    num_bytes, address = store.data.nbytes, store.data.data_ptr()
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    try:
        torch.cuda.check_error(cudart.cudaHostRegister(address, num_bytes, 0))
    except RuntimeError as error:
        raise KVMemoryError(
            f"{num_bytes / 2**30:.1f} GiB of host memory cannot be pinned",
            why=str(error),
            fix="Set a smaller --kv-host-memory, or 0 for none",
        ) from error
    weakref.finalize(store, cudart.cudaHostUnregister, address).atexit = False
