"""The seam between what a step computes and how long that takes."""

from __future__ import annotations

from typing import Protocol

from evenflow.execution.costs.shape import StepShape


class CostModel(Protocol):
    """Says how long steps take."""

    @property
    def description(self) -> str:
        """What it is and where its figures come from, on one line."""
        ...

    def step_s(self, shape: StepShape) -> float:
        """Return the seconds of a step; 0 for one that computes nothing.

        A simulation asks for every step it takes, so an answer may cost some microseconds.
        """
        ...
