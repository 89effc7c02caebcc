"""The seam between what a step computes and how long that takes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

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

    def decode_steps_s(
        self, num_decodes: int, num_context_tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the seconds of many steps that compute decodes and nothing else.

        Args:
            num_decodes: requests, at least one, the same in each step.
            num_context_tokens: (steps,), KV entries that they read in each.

        Returns:
            (steps,), what `step_s` says of each step.
        """
        ...
