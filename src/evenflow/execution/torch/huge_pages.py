"""Memory by the page: huge pages, for what is read from one end to the other at every step.

With ordinary pages of 4 KiB a core spends its time looking up where they are: reading weights from
memory took 1.3 times as long on two cores, 1.7 times on one.

Knows: pages, addresses.
Does not know: what the memory is for.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections import defaultdict
from collections.abc import Sequence
from math import prod

import numpy as np
import torch

_SLAB_BYTES = 1 << 26
_CACHE_LINE = 64
_UNUSED = 3  # references to a block: of the pool, of the loop, of the one who counts them
_NUMPY_TYPES = {
    torch.float32: np.float32,
    torch.uint8: np.uint8,
    torch.int32: np.int32,
    torch.int64: np.int64,
}


def reserve(num_bytes: int) -> torch.Tensor:
    """Return uninitialised memory, uint8; in huge pages where the system has them."""
    if sys.platform != "linux" or num_bytes == 0:
        return torch.empty(num_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages: ordinary ones will do
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def drop_pages(mapped: torch.Tensor) -> None:
    """Give back memory that a view of a mapped file takes, since it has been read.

    Whoever reads it once more has it read from the file. What was written to it is lost.

    Args:
        mapped: contiguous; pages that are not wholly within it stay.
    """
    if sys.platform != "linux":
        return
    start = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    num_bytes = mapped.data_ptr() + mapped.nbytes - start
    if num_bytes >= mmap.PAGESIZE:
        num_bytes -= num_bytes % mmap.PAGESIZE
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(num_bytes), mmap.MADV_DONTNEED)


class Arena:
    """Hands out memory from large slabs, since most weights alone would not fill huge pages.

    A slab is freed with the last tensor that lies in it. What is not used yet takes no memory.
    """

    def __init__(self) -> None:
        self._slab = reserve(0)
        self._used = 0

    def take(self, num_bytes: int) -> torch.Tensor:
        """Return uninitialised memory, uint8, that starts at a cache line."""
        if self._used + num_bytes > self._slab.numel():
            self._slab = reserve(max(num_bytes, _SLAB_BYTES))
            self._used = 0
        start = self._used
        self._used += num_bytes + -num_bytes % _CACHE_LINE
        return self._slab[start : start + num_bytes]


class Pool:
    """Memory for tensors that come and go; what none of them uses any more is handed out again.

    What is large the system hands out page by page, each one cleared at its first use after every
    allocation. Large results of every step would spend much of their time on that.
    """

    def __init__(self) -> None:
        self._arena = Arena()
        self._blocks: dict[int, list[np.ndarray]] = defaultdict(list)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised tensor."""
        num_bytes = prod(shape) * dtype.itemsize
        size = max(_CACHE_LINE, 1 << (num_bytes - 1).bit_length())  # few sizes, so that many fit
        blocks = self._blocks[size]
        for block in blocks:
            if sys.getrefcount(block) == _UNUSED:
                break
        else:
            block = self._arena.take(size).numpy()
            blocks.append(block)
        # All tensors that share the memory keep this array alive, and it refers to the block.
        return torch.from_numpy(np.ndarray(shape, _NUMPY_TYPES[dtype], block.data))
