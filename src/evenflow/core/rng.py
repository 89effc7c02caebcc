"""Random streams that depend on nothing but (seed, position).

A request draws the uniform number for its i-th output token as a pure function of its seed and
i. Its tokens therefore do not change when it shares a batch, is preempted, or is resumed, and
there is no generator state to save.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014, figure 15)."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def uniform(
    seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    """Draw one number in [0, 1) for each (seed, position).

    Args:
        seeds: (n,), uint64, one stream per request.
        positions: (n,), uint64, index of the draw within its stream.

    Returns:
        (n,), float64, with 53 random bits each.
    """
    with np.errstate(over="ignore"):
        z = _mix(_mix(seeds) + positions * _GAMMA)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def derive_seed(*parts: str | int) -> int:
    """Hash `parts` into a 64-bit seed, the same on every machine and in every run."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
