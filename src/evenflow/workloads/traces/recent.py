"""A bounded memory of sessions, for streams too long to remember all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

NUM_OPEN_SESSIONS = 65_536


class Recent(Generic[Key, Value]):
    """Remembers the values of the keys that were set last, and forgets the others.

    Args:
        capacity: how many.
    """

    def __init__(self, capacity: int = NUM_OPEN_SESSIONS) -> None:
        self._capacity = capacity
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """Return the value of a key, None when it is unknown or forgotten."""
        return self._values.get(key)

    def set(self, key: Key, value: Value) -> None:
        """Remember a value."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._capacity:
            self._values.popitem(last=False)
