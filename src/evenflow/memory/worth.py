"""What a copy on a lower tier is good for, and which one goes first.

    value  =  tokens to be computed again without it  x  chance that it is asked for  /  bytes

All blocks have the same size, so bytes fall out. For what nobody is sure to come back for, the
chance halves with every `HALF_LIFE_S` since the last use. All such values fall alike, so which of
two is larger does not change by waiting: logarithms that count from a common point in time can be
compared whenever they were made, and a heap of them stays a heap.

Knows: chances, the order among copies.
Does not know: tiers, blocks, requests; the time, which is passed in.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import NamedTuple

from evenflow.memory.prefix_cache import BlockHash

HALF_LIFE_S = 600.0
"""Half of those who have not come back by then are not expected any more."""

CHANCE_OF_SESSION = 0.5
"""That a session has another turn while its copies are there."""

CHANCE_OF_STRANGER = 0.01
"""That somebody comes with the prefix of a request that has ended."""

CHANCE_OF_DEPARTURE = 0.2
"""That a running request has to leave, and a copy of what it has on the device saves writing it."""


class Worth(NamedTuple):
    """What keeping a copy is good for. The smallest goes first.

    Attributes:
        is_within_quota: whether the tenant had no more copies than its share when this was made.
        is_awaited: whether somebody who lives is sure to come back for it.
        urgency: of who does; the negative priority.
        value: the logarithm of the value, to base 2.
    """

    is_within_quota: bool = True
    is_awaited: bool = False
    urgency: int = 0
    value: float = -math.inf


def awaited(num_tokens: int, urgency: int) -> Worth:
    """Return the worth of a copy that a living request is sure to come back for."""
    return Worth(is_awaited=True, urgency=urgency, value=math.log2(num_tokens))


def hoped_for(num_tokens: int, chance: float, urgency: int, last_use_s: float) -> Worth:
    """Return the worth of a copy that somebody may ask for.

    Args:
        num_tokens: to be computed again without it.
        chance: that somebody does, as of its last use.
        urgency: of who used it last. A level outweighs a half-life, so that nothing lasts for ever.
        last_use_s: when that was.
    """
    value = math.log2(num_tokens * chance) + urgency + last_use_s / HALF_LIFE_S
    return Worth(value=value)


class ByWorth:
    """Gives up what is worth least, the oldest among equals. Operations are O(log n).

    Args:
        worth_of: what a candidate is worth.
    """

    def __init__(self, worth_of: Callable[[BlockHash], Worth]) -> None:
        self._worth_of = worth_of
        self._worth: dict[BlockHash, tuple[Worth, int]] = {}
        # May hold entries that `_worth` no longer confirms.
        self._heap: list[tuple[Worth, int, BlockHash]] = []
        self._num_added = 0

    def access(self, key: BlockHash) -> None:
        """Uses do not change what a copy is worth."""

    def predict(self, key: BlockHash) -> float:
        """Expect what is worth little to be used late."""
        return -self._worth[key][0].value

    def victim(self) -> BlockHash:
        """Return the candidate that is worth least."""
        while self._heap:
            worth, number, key = self._heap[0]
            if self._worth.get(key) == (worth, number):
                return key
            heapq.heappop(self._heap)
        raise LookupError("no candidate to evict")

    def least(self) -> Worth:
        """Return what the next victim is worth.

        Raises:
            LookupError: there is no candidate.
        """
        return self._worth[self.victim()][0]

    def add(self, key: BlockHash) -> None:
        """Make `key` a candidate, or one that is worth something else than before."""
        self._num_added += 1
        worth = self._worth_of(key)
        self._worth[key] = (worth, self._num_added)
        heapq.heappush(self._heap, (worth, self._num_added, key))
        if len(self._heap) > 2 * len(self._worth) + 64:
            self._heap = [(worth, number, key) for key, (worth, number) in self._worth.items()]
            heapq.heapify(self._heap)

    def discard(self, key: BlockHash) -> None:
        """Make `key` no candidate, if it was one."""
        self._worth.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return key in self._worth

    def __len__(self) -> int:
        return len(self._worth)
