"""Lengths of prompts together with those of their answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evenflow.workloads.distributions import Lengths


class LengthPairs(Protocol):
    """What lengths are drawn from."""

    def draw(self, num: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Draw (prompt tokens, output tokens) of `num` requests."""
        ...


@dataclass(slots=True, frozen=True)
class IndependentPairs:
    """A prompt's length says nothing about that of its answer."""

    prompt: Lengths
    output: Lengths

    def draw(self, num: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Draw (prompt tokens, output tokens) of `num` requests."""
        return list(zip(self.prompt.draw(num, rng), self.output.draw(num, rng), strict=True))


@dataclass(slots=True, frozen=True)
class RecordedPairs:
    """Pairs as they were recorded, drawn with replacement.

    Attributes:
        pairs: (n, 2), int64, the lengths of prompts and answers.
    """

    pairs: npt.NDArray[np.int64]

    def draw(self, num: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Draw (prompt tokens, output tokens) of `num` requests."""
        chosen = self.pairs[rng.integers(len(self.pairs), size=num)]
        return [(prompt, output) for prompt, output in chosen.tolist()]
