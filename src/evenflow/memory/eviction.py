"""Which cached content to give up when memory runs short.

A policy ranks *candidates*. A key is a candidate from `add` until `discard`; while content is in
use it is none. All policies share one interface, so that a learned one can take LRU's place and
each can be measured against `Belady`, the optimum that knows the future.

Knows: keys and the order of their uses.
Does not know: blocks, sizes, clocks.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Sequence
from typing import Generic, Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)


class EvictionPolicy(Protocol[Key]):
    """Chooses among candidates of equal size."""

    def access(self, key: Key) -> None:
        """Note that `key`, candidate or not, is used now."""
        ...

    def predict(self, key: Key) -> float:
        """Return where the next use of a candidate is expected; larger is later.

        Only the order among candidates has a meaning.
        """
        ...

    def victim(self) -> Key:
        """Return the candidate with the latest expected next use; it stays a candidate.

        Raises:
            LookupError: there is no candidate.
        """
        ...

    def add(self, key: Key) -> None:
        """Make `key` a candidate, its use having ended now."""
        ...

    def discard(self, key: Key) -> None:
        """Make `key` no candidate, if it was one."""
        ...

    def __contains__(self, key: object) -> bool: ...

    def __len__(self) -> int: ...


class LRU(Generic[Key]):
    """Gives up what has been out of use the longest. Every operation is O(1)."""

    def __init__(self) -> None:
        self._last_use: OrderedDict[Key, int] = OrderedDict()
        self._num_uses = 0

    def access(self, key: Key) -> None:
        """Note a use."""
        if key in self._last_use:
            self.add(key)

    def predict(self, key: Key) -> float:
        """Expect the next use as far ahead as the last one is behind."""
        return -self._last_use[key]

    def victim(self) -> Key:
        """Return the least recently used candidate."""
        if not self._last_use:
            raise LookupError("no candidate to evict")
        return next(iter(self._last_use))

    def add(self, key: Key) -> None:
        """Make `key` the most recently used candidate."""
        self._num_uses += 1
        self._last_use[key] = self._num_uses
        self._last_use.move_to_end(key)

    def discard(self, key: Key) -> None:
        """Make `key` no candidate, if it was one."""
        self._last_use.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return key in self._last_use

    def __len__(self) -> int:
        return len(self._last_use)


class Belady(Generic[Key]):
    """Gives up what is used again the latest: the offline optimum (Belady 1966).

    Each `access` moves one step along the given future.

    Args:
        future: the keys in the order in which they will be accessed.
    """

    def __init__(self, future: Sequence[Key]) -> None:
        self._future = future
        self._num_accesses = 0
        self._uses: defaultdict[Key, list[int]] = defaultdict(list)
        for position, key in enumerate(future):
            self._uses[key].append(position)
        self._candidates: dict[Key, None] = {}

    def access(self, key: Key) -> None:
        """Move on to the next access of the future.

        Raises:
            ValueError: the future said otherwise.
        """
        if self._num_accesses >= len(self._future) or self._future[self._num_accesses] != key:
            raise ValueError(f"access {self._num_accesses} to {key!r} is not the foretold one")
        self._num_accesses += 1

    def predict(self, key: Key) -> float:
        """Return the position of the next use, infinity if there is none."""
        uses = self._uses.get(key, [])
        upcoming = bisect_left(uses, self._num_accesses)
        return uses[upcoming] if upcoming < len(uses) else math.inf

    def victim(self) -> Key:
        """Return the candidate used again the latest; O(candidates)."""
        if not self._candidates:
            raise LookupError("no candidate to evict")
        return max(self._candidates, key=self.predict)

    def add(self, key: Key) -> None:
        """Make `key` a candidate."""
        self._candidates[key] = None

    def discard(self, key: Key) -> None:
        """Make `key` no candidate, if it was one."""
        self._candidates.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return key in self._candidates

    def __len__(self) -> int:
        return len(self._candidates)
