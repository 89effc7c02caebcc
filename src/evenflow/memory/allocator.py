"""Free space as extents: best fit on the way out, merged with its neighbours on the way back.

Knows: which blocks are free.
Does not know: who has the others; whoever frees an extent must own all of it.

Three views of the same free extents are kept in step:

    _starts      sorted                   which free extent is before, behind or around a block?
    _length_at   start -> length          and how long is it?
    _by_size     sorted (length, start)   which is the smallest that fits, which the largest?

Invariants:
    Free extents are disjoint and never touch: neighbours are always merged.
    `num_free` is the sum of their lengths.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from evenflow.core.errors import IntegrityError
from evenflow.memory.extents import Extent


class ExtentAllocator:
    """Hands out runs of the blocks `0 .. num_blocks - 1`.

    Args:
        num_blocks: blocks to manage, at least one; all are free at first.

    Attributes:
        num_blocks: blocks managed.
        num_free: blocks not handed out.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_free = 0
        self._starts: list[int] = []
        self._length_at: dict[int, int] = {}
        self._by_size: list[tuple[int, int]] = []
        self.free(Extent(0, num_blocks))

    @property
    def largest_free(self) -> int:
        """Length of the longest free extent, 0 if nothing is free."""
        return self._by_size[-1][0] if self._by_size else 0

    def free_extents(self) -> list[Extent]:
        """Return the free extents by address."""
        return [Extent(start, self._length_at[start]) for start in self._starts]

    def allocate(self, num_blocks: int) -> Extent | None:
        """Take `num_blocks` neighbours off the head of the smallest free extent that has them.

        Among equals the lowest address wins. Returns None if no free extent is long enough.

        Raises:
            ValueError: `num_blocks` is not positive.
        """
        if num_blocks < 1:
            raise ValueError(f"cannot allocate {num_blocks} blocks")
        position = bisect_left(self._by_size, (num_blocks, 0))
        if position == len(self._by_size):
            return None
        return self._take(position, num_blocks)

    def allocate_scattered(self, num_blocks: int) -> list[Extent] | None:
        """Take `num_blocks` in as few extents as possible.

        One extent by best fit if there is one; otherwise the largest ones, whole, and a best fit
        for what is then still missing. Returns None, taking nothing, if too little is free.
        """
        if num_blocks > self.num_free:
            return None
        extents: list[Extent] = []
        while num_blocks > 0:
            best = bisect_left(self._by_size, (num_blocks, 0))
            position = min(best, len(self._by_size) - 1)
            extent = self._take(position, min(num_blocks, self.largest_free))
            extents.append(extent)
            num_blocks -= extent.length
        return extents

    def allocate_at(self, start: int, num_blocks: int) -> Extent | None:
        """Take the free neighbours from a block on, at most `num_blocks`; None if it is taken."""
        position = bisect_right(self._starts, start) - 1
        first = self._starts[position] if position >= 0 else start + 1
        whole = Extent(first, self._length_at.get(first, 0))
        if not whole.contains(start):
            return None
        taken = Extent(start, min(num_blocks, whole.stop - start))
        self._remove(first, whole.length)
        if start > first:
            self._insert(first, start - first)
        if whole.stop > taken.stop:
            self._insert(taken.stop, whole.stop - taken.stop)
        self.num_free -= taken.length
        return taken

    def allocate_apart(self, num_blocks: int) -> Extent | None:
        """Take neighbours out of the middle of the largest free extent.

        What is behind them stays free as long as there is room elsewhere, so that they can grow.
        Returns None if no free extent is long enough.
        """
        if num_blocks > self.largest_free:
            return None
        length, start = self._by_size[-1]
        return self.allocate_at(start + (length - num_blocks) // 2, num_blocks)

    def claim(self, block_id: int) -> None:
        """Take this one block.

        Raises:
            IntegrityError: it is not free.
        """
        if self.allocate_at(block_id, 1) is None:
            raise IntegrityError(f"block {block_id} is claimed but not free")

    def free(self, extent: Extent) -> None:
        """Give an extent back; it merges with free neighbours on both sides.

        Raises:
            IntegrityError: some of it is free already.
        """
        start, stop = extent.start, extent.stop
        position = bisect_left(self._starts, start)
        behind = self._starts[position] if position < len(self._starts) else self.num_blocks + 1
        before = self._starts[position - 1] if position > 0 else -1
        stop_before = before + self._length_at.get(before, 0)
        if behind < stop or stop_before > start:
            raise IntegrityError(f"{extent} is freed but not all of it was taken")
        if behind == stop:
            stop += self._length_at[behind]
            self._remove(behind, stop - behind)
        if stop_before == start:
            self._remove(before, start - before)
            start = before
        self._insert(start, stop - start)
        self.num_free += extent.length

    def check_integrity(self) -> None:
        """Compare the three views with each other.

        Raises:
            IntegrityError: they differ, or an extent is out of range, overlaps or touches another.
        """
        extents = self.free_extents()
        stop_before = -1
        for extent in extents:
            if extent.start <= stop_before or extent.length < 1 or extent.stop > self.num_blocks:
                raise IntegrityError(
                    f"free {extent} is empty, out of range, or not apart from its neighbour",
                    why=f"{self.num_blocks} blocks, the extent before stops at {stop_before}",
                )
            stop_before = extent.stop
        if self._by_size != sorted((extent.length, extent.start) for extent in extents):
            raise IntegrityError("the size index does not list the free extents")
        if sorted(self._length_at) != self._starts:
            raise IntegrityError("the index of starts does not list the free extents")
        if self.num_free != sum(extent.length for extent in extents):
            raise IntegrityError(f"num_free is {self.num_free}, not the sum of the free extents")

    def _take(self, position: int, num_blocks: int) -> Extent:
        """Take the head of the free extent at a position of the size index."""
        length, start = self._by_size[position]
        self._remove(start, length)
        if length > num_blocks:
            self._insert(start + num_blocks, length - num_blocks)
        self.num_free -= num_blocks
        return Extent(start, num_blocks)

    def _insert(self, start: int, length: int) -> None:
        self._length_at[start] = length
        insort(self._starts, start)
        insort(self._by_size, (length, start))

    def _remove(self, start: int, length: int) -> None:
        del self._length_at[start]
        del self._starts[bisect_left(self._starts, start)]
        del self._by_size[bisect_left(self._by_size, (length, start))]
