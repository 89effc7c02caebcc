"""Rotary position embeddings: the angle by which each pair of a head turns at each position.

Knows: the frequencies of every supported kind of rope scaling, in fp32.
Does not know: heads, layers, how a rotation is applied (`Attention.rotate_store`).

Invariants:
    Row p of a table depends on p alone, so a token is rotated alike in every batch.
"""

from __future__ import annotations

import math

import torch

from evenflow.execution.attention import Rotation
from evenflow.execution.ops import Ops
from evenflow.models.spec import ModelSpec, RopeScaling


class RotaryTable:
    """Cosines and sines of every position a model can see.

    Args:
        head_dim: entries per head; all of them are rotated.
        theta: base of the frequencies.
        num_positions: rows of the table.
        ops: how rows of it are gathered.
        scaling: stretch of the frequencies.
        device: where positions will be.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        num_positions: int,
        ops: Ops,
        scaling: RopeScaling | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        frequencies, magnitude = rotary_frequencies(head_dim, theta, scaling)
        angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies
        self._cos = ops.embedding(angles.cos().mul_(magnitude).to(device))
        self._sin = ops.embedding(angles.sin_().mul_(magnitude).to(device))

    @classmethod
    def from_spec(
        cls, spec: ModelSpec, ops: Ops, device: torch.device | str = "cpu"
    ) -> RotaryTable:
        """Build the table of a model whose layers all rotate alike."""
        return cls(
            spec.head_dim,
            spec.rope_theta,
            spec.max_position_embeddings,
            ops,
            spec.rope_scaling,
            device,
        )

    def rows(self, positions: torch.Tensor) -> Rotation:
        """Gather the rotation of each token; once per step serves all layers.

        Args:
            positions: (num_tokens,), int64.
        """
        return Rotation(self._cos(positions), self._sin(positions))


def rotary_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[torch.Tensor, float]:
    """Return the angle per position of each pair, and the factor of the cosines and sines.

    Returns:
        frequencies: (head_dim / 2,), fp32, radians per position.
        magnitude: 1 except for yarn.
    """
    periods = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    frequencies = 1.0 / periods
    if scaling is None:
        return frequencies, 1.0
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3_frequencies(frequencies, scaling), 1.0
    magnitude = scaling.attention_factor
    if magnitude is None:
        magnitude = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1.0 else 1.0
    return _yarn_frequencies(periods, theta, scaling), magnitude


def _llama3_frequencies(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Divide slow frequencies by the factor, keep fast ones, blend linearly between (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position_embeddings / wavelengths
    band = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / band).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn_frequencies(periods: torch.Tensor, theta: float, scaling: RopeScaling) -> torch.Tensor:
    """Keep pairs that turn often, interpolate pairs that turn seldom (YaRN, arXiv 2309.00071).

    The ramp runs over pair indices: a pair i makes `original / (2 pi theta^(2i/d))` turns over the
    trained context, which is solved for i at `beta_fast` and `beta_slow` turns.
    """
    head_dim = 2 * periods.shape[0]

    def pair_with(turns: float) -> float:
        trained = scaling.original_max_position_embeddings
        return head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_with(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_with(scaling.beta_slow)), head_dim - 1)
    width = (last - first) or 0.001  # a band of no width is a step, not a division by zero
    kept = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0.0, 1.0)
    return (1 - kept) / (scaling.factor * periods) + kept / periods
