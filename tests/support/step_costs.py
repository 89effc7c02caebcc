"""Cost models of tests."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from evenflow.execution.costs import StepShape


class OneByOne(ABC):
    """Prices steps one by one also where many are asked for at once."""

    @abstractmethod
    def step_s(self, shape: StepShape) -> float:
        """Return the seconds of a step."""

    def decode_steps_s(
        self, num_decodes: int, num_context_tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the seconds of steps that only decode."""
        contexts = num_context_tokens.tolist()
        return np.array([self.step_s(StepShape((), num_decodes, context)) for context in contexts])
