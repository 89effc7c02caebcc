"""Step times as a formula with a handful of coefficients, and the fit that finds them.

    prefill  a + b * sum(l) + c * sum(l^2)          l: prompt tokens of a request
    decode   a + b * sum(ctx) + c * batch           ctx: KV entries a request reads

DistServe, APEX and others use these forms in different dress. Two rules carry them over to steps
that those systems do not have:

    A chunk of l tokens after h computed ones stands for (h + l)^2 - h^2 in the square term, so the
        chunks of a prompt add up to the prompt in one piece.
    A step with decodes and chunks is the decode step plus the chunks' b and c terms. Its constant,
        which is mostly the weights being read, is paid once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from evenflow.execution.costs.measured import MeasuredStep
from evenflow.execution.costs.shape import StepShape


@dataclass(slots=True, frozen=True)
class PrefillCoefficients:
    """Of steps that compute prompts.

    Attributes:
        constant_s: a.
        per_token_s: b.
        per_square_s: c.
    """

    constant_s: float
    per_token_s: float
    per_square_s: float


@dataclass(slots=True, frozen=True)
class DecodeCoefficients:
    """Of steps with at least `min_batch` decodes.

    Attributes:
        constant_s: a.
        per_context_token_s: b.
        per_request_s: c.
        min_batch: the smallest batch these hold for.
    """

    constant_s: float
    per_context_token_s: float
    per_request_s: float
    min_batch: int = 1


@dataclass(slots=True, frozen=True)
class ClosedFormCosts:
    """The closed form.

    Attributes:
        prefill: of prompts.
        decodes: of decodes, by ascending `min_batch`; the first one also holds below its own.
        source: where the coefficients come from.
        overhead_s: what the host adds to every step.
        overhead_per_context_token_s: what it adds for every KV entry of the step's requests.
    """

    prefill: PrefillCoefficients
    decodes: tuple[DecodeCoefficients, ...]
    source: str
    overhead_s: float = 0.0
    overhead_per_context_token_s: float = 0.0

    @property
    def description(self) -> str:
        """What it is and where its figures come from."""
        return f"closed form; {self.source}"

    def step_s(self, shape: StepShape) -> float:
        """Return the seconds of a step."""
        num_decodes, context = shape.num_decodes, shape.num_decode_context_tokens
        if num_decodes:
            decode = self._decode(num_decodes)
            seconds = (
                decode.constant_s
                + decode.per_context_token_s * context
                + decode.per_request_s * num_decodes
            )
        elif shape.chunks:
            seconds = self.prefill.constant_s
        else:
            return 0.0
        if shape.chunks:
            num_tokens, num_squares = _chunk_terms(shape)
            seconds += self.prefill.per_token_s * num_tokens
            seconds += self.prefill.per_square_s * num_squares
        if self.overhead_per_context_token_s:
            seconds += self.overhead_per_context_token_s * shape.num_context_tokens
        return seconds + self.overhead_s

    def decode_steps_s(
        self, num_decodes: int, num_context_tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the seconds of steps that only decode."""
        decode = self._decode(num_decodes)
        seconds = (
            decode.constant_s
            + decode.per_context_token_s * num_context_tokens
            + decode.per_request_s * num_decodes
        )
        return seconds + self.overhead_per_context_token_s * num_context_tokens + self.overhead_s

    def _decode(self, batch: int) -> DecodeCoefficients:
        chosen = self.decodes[0]
        for coefficients in self.decodes[1:]:
            if batch >= coefficients.min_batch:
                chosen = coefficients
        return chosen


def fit_closed_form(steps: Sequence[MeasuredStep], source: str) -> ClosedFormCosts:
    """Find the coefficients, none of them negative, with the least squares of relative errors.

    Args:
        steps: measured ones; there must be prefills and decodes among them.
        source: where they were measured.
    """
    seconds = np.array([step.seconds for step in steps])
    terms = np.array([_terms(step.shape) for step in steps])
    prefill, decode = np.split(
        _non_negative_least_squares(terms / seconds[:, np.newaxis], np.ones_like(seconds)), 2
    )
    return ClosedFormCosts(
        PrefillCoefficients(*prefill.tolist()), (DecodeCoefficients(*decode.tolist()),), source
    )


def _terms(shape: StepShape) -> list[float]:
    """Return what each coefficient of `fit_closed_form` is multiplied with in `step_s`."""
    num_tokens, num_squares = _chunk_terms(shape)
    has_decodes = float(shape.num_decodes > 0)
    return [
        1.0 - has_decodes,
        num_tokens,
        num_squares,
        has_decodes,
        shape.num_decode_context_tokens,
        shape.num_decodes,
    ]


def _chunk_terms(shape: StepShape) -> tuple[int, int]:
    """Return the sums of l and of (h + l)^2 - h^2."""
    num_tokens = num_squares = 0
    for new, before in shape.chunks:
        num_tokens += new
        num_squares += new * (new + 2 * before)
    return num_tokens, num_squares


def _non_negative_least_squares(
    matrix: npt.NDArray[np.float64], target: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return x >= 0 with the least |matrix x - target|, by trying every set of non-zero entries.

    The best x solves the unconstrained problem on the columns where it is not zero, so it is
    among the candidates. With n columns there are 2^n of them.
    """
    num_columns = matrix.shape[1]
    best = np.zeros(num_columns)
    least = float(np.sum(target**2))
    for size in range(1, num_columns + 1):
        for columns in combinations(range(num_columns), size):
            solution, *_ = np.linalg.lstsq(matrix[:, columns], target, rcond=None)
            error = float(np.sum((matrix[:, columns] @ solution - target) ** 2))
            if error < least and (solution >= 0).all():
                best, least = np.zeros(num_columns), error
                best[list(columns)] = solution
    return best
