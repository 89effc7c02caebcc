"""Step times put together from measured steps: chunks alone, and decodes alone.

    chunk of n tokens, k keys each    body(n) + chunk attention(n, k)       k: the mean over tokens
    b decodes, k keys each            base(b) + decode attention(b, k)
    several parts                     base(b) + body(n + b) - body(b) + the attention of each part

The body is a step without attention; the base is that of decodes, which sample for every token.
Measured at several k, a row of steps with the same n or b tells both: the straight line through its
ends meets k = 0 at the body, and what stands above that is attention. A chunk alone and decodes
alone therefore take exactly what was measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evenflow.core.errors import ConfigError
from evenflow.execution.costs.interpolation import Curve, Range, Surface
from evenflow.execution.costs.shape import StepShape


@dataclass(slots=True, frozen=True)
class MeasuredStep:
    """A step and how long it took.

    Attributes:
        shape: what it computed.
        seconds: from the start of the step to its end.
    """

    shape: StepShape
    seconds: float


class MeasuredCosts:
    """The tables.

    Args:
        steps: measured ones. Those with one chunk alone, and those with decodes alone, make the
            tables; the others are ignored.
        source: where they were measured.

    Raises:
        ConfigError: there are no chunks, or no decodes, among them.
    """

    def __init__(self, steps: Sequence[MeasuredStep], source: str) -> None:
        shapes = [(step.shape, step.seconds) for step in steps]
        chunks = [
            (shape.num_tokens, _mean_keys(*shape.chunks[0]), seconds)
            for shape, seconds in shapes
            if len(shape.chunks) == 1 and not shape.num_decodes
        ]
        decodes = [
            (shape.num_decodes, shape.num_decode_context_tokens / shape.num_decodes, seconds)
            for shape, seconds in shapes
            if shape.num_decodes and not shape.chunks
        ]
        if not chunks or not decodes:
            raise ConfigError(
                "the measured steps make no table",
                why=f"{len(chunks)} of them are a chunk alone and {len(decodes)} decodes alone",
                fix="Measure both kinds, with `evenflow calibrate`",
            )
        self.description = f"measured steps, interpolated; {source}"
        self._body, self._chunk_attention = _split("chunks", "tokens", chunks)
        self._base, self._decode_attention = _split("decodes", "requests", decodes)

    def step_s(self, shape: StepShape) -> float:
        """Return the seconds of a step."""
        chunks, num_decodes = shape.chunks, shape.num_decodes
        seconds = 0.0
        if num_decodes:
            keys = shape.num_decode_context_tokens / num_decodes
            seconds = self._base(num_decodes) + self._decode_attention(num_decodes, keys)
        if chunks:
            seconds += self._body(shape.num_tokens)
            if num_decodes:
                seconds -= self._body(num_decodes)
            for new, before in chunks:
                seconds += self._chunk_attention(new, _mean_keys(new, before))
        return seconds

    def decode_steps_s(
        self, num_decodes: int, num_context_tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the seconds of steps that only decode."""
        keys = num_context_tokens / num_decodes
        return self._base(num_decodes) + self._decode_attention.values_at(num_decodes, keys)


def _mean_keys(new: int, before: int) -> float:
    """Return how many keys a chunk's tokens attend to, on average."""
    return before + (new + 1) / 2


def _split(
    kind: str, unit: str, points: Iterable[tuple[int, float, float]]
) -> tuple[Curve, Surface]:
    """Split measured times into a part for each number of tokens, and attention on top.

    Args:
        kind: what was measured.
        unit: what its steps are counted in.
        points: (tokens, mean keys per token, seconds).
    """
    rows: defaultdict[int, dict[float, float]] = defaultdict(dict)
    for num_tokens, keys, seconds in points:
        rows[num_tokens][keys] = seconds
    bodies: list[tuple[float, float]] = []
    attention: list[tuple[float, float, float]] = []
    for num_tokens, row in rows.items():
        fewest, most = min(row), max(row)
        per_key_s = (row[most] - row[fewest]) / (most - fewest) if most > fewest else 0.0
        body_s = row[fewest] - max(per_key_s, 0.0) * fewest
        bodies.append((num_tokens, body_s))
        attention += [(num_tokens, keys, seconds - body_s) for keys, seconds in row.items()]
    attended = Range(f"the attention time of {kind}", "keys per token")
    return (
        Curve(bodies, Range(f"the time of {kind}", unit)),
        Surface(attention, Range(f"the attention time of {kind}", unit), attended),
    )
