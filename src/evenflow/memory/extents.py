"""Extents: runs of neighbouring blocks, the unit in which memory is handed out and moved.

Knows: arithmetic on runs of block ids.
Does not know: who owns a block or what lies in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from evenflow.core.ids import BlockId


@dataclass(slots=True, frozen=True)
class Extent:
    """The blocks `start`, `start + 1`, ..., `stop - 1`.

    Attributes:
        start: first block id.
        length: number of blocks, at least one.
    """

    start: int
    length: int

    @property
    def stop(self) -> int:
        """One past the last block id."""
        return self.start + self.length

    @property
    def block_ids(self) -> Sequence[BlockId]:
        """The block ids, ascending."""
        return cast("Sequence[BlockId]", range(self.start, self.start + self.length))

    def contains(self, block_id: int) -> bool:
        """Return whether the block lies in this extent."""
        return self.start <= block_id < self.stop

    def overlaps(self, other: Extent) -> bool:
        """Return whether the two extents have a block in common."""
        return self.start < other.stop and other.start < self.stop

    def split(self, length: int) -> tuple[Extent, Extent]:
        """Return the first `length` blocks and the rest; neither may be empty."""
        return Extent(self.start, length), Extent(self.start + length, self.length - length)


def coalesce(block_ids: Iterable[int]) -> list[Extent]:
    """Return the extents that list `block_ids` in the given order, each as long as possible."""
    extents: list[Extent] = []
    start = stop = -1
    for block_id in block_ids:
        if block_id == stop:
            stop += 1
            continue
        if stop > start:
            extents.append(Extent(start, stop - start))
        start, stop = block_id, block_id + 1
    if stop > start:
        extents.append(Extent(start, stop - start))
    return extents


def intersect(
    sources: Sequence[Extent], destinations: Sequence[Extent]
) -> list[tuple[Extent, Extent]]:
    """Return the copies that move `sources` to `destinations`, both in logical order.

        sources       |---- 10..15 ----|- 40..41 -|
        destinations  |- 0..2 -|----- 7..11 ------|
        copies        | 10..12 |13..15 |  40..41  |     each side of a copy is one run

    A copy ends where either side breaks (FastSwitch, arXiv 2411.18424, block groups as the unit
    of transfer).

    Raises:
        ValueError: the two sides do not have the same number of blocks.
    """
    num_sources = sum(extent.length for extent in sources)
    num_destinations = sum(extent.length for extent in destinations)
    if num_sources != num_destinations:
        raise ValueError(f"cannot map {num_sources} blocks onto {num_destinations}")

    copies: list[tuple[Extent, Extent]] = []
    sources_left, destinations_left = list(reversed(sources)), list(reversed(destinations))
    while sources_left:
        source, destination = sources_left.pop(), destinations_left.pop()
        if source.length > destination.length:
            source, rest = source.split(destination.length)
            sources_left.append(rest)
        elif destination.length > source.length:
            destination, rest = destination.split(source.length)
            destinations_left.append(rest)
        copies.append((source, destination))
    return copies
