"""A sample of fixed size of a stream of unknown length."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

import numpy as np

Value = TypeVar("Value")


class Reservoir(Generic[Value]):
    """A uniform sample without replacement; Li's algorithm L (ACM TOMS 20, 1994).

    Args:
        capacity: size of the sample.
        rng: chooses it.
    """

    def __init__(self, capacity: int, rng: np.random.Generator) -> None:
        self.values: list[Value] = []
        self._capacity = capacity
        self._rng = rng
        self._num_seen = 0
        self._next_taken = capacity
        self._weight = 1.0

    def add(self, value: Value) -> None:
        """Take in the next value of the stream."""
        self._num_seen += 1
        if self._num_seen <= self._capacity:
            self.values.append(value)
            if self._num_seen == self._capacity:
                self._skip()
        elif self._num_seen == self._next_taken:
            self.values[int(self._rng.integers(self._capacity))] = value
            self._skip()

    def _skip(self) -> None:
        """Choose which value is the next to be taken."""
        self._weight *= math.exp(math.log(1 - self._rng.random()) / self._capacity)
        num_skipped = math.floor(math.log(1 - self._rng.random()) / math.log1p(-self._weight))
        self._next_taken = self._num_seen + num_skipped + 1
