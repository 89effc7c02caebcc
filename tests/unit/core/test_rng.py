from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evenflow.core.rng import derive_seed, uniform


def draw(seeds: object, positions: object) -> npt.NDArray[np.float64]:
    seeds, positions = np.broadcast_arrays(
        np.asarray(seeds, dtype=np.uint64), np.asarray(positions, dtype=np.uint64)
    )
    return uniform(seeds, positions)


def chi_square(numbers: npt.NDArray[np.float64], num_bins: int) -> float:
    counts, _ = np.histogram(numbers, bins=num_bins, range=(0.0, 1.0))
    expected = len(numbers) / num_bins
    return float(((counts - expected) ** 2 / expected).sum())


def test_uniform_stays_at_or_above_zero_and_below_one() -> None:
    seeds = [0, 1, 2**32, 2**63, 2**64 - 1]
    numbers = np.concatenate([draw(seed, np.arange(20_000)) for seed in seeds])
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0


def test_uniform_does_not_depend_on_the_batch() -> None:
    seeds, positions = np.arange(50), np.arange(50) * 7
    together = draw(seeds, positions)
    alone = [draw([seed], [at])[0] for seed, at in zip(seeds, positions, strict=True)]
    assert together.tolist() == alone


def test_uniform_is_flat_along_a_stream_and_across_seeds() -> None:
    # 99 degrees of freedom: 149 is exceeded with a probability of one in a thousand.
    assert chi_square(draw(42, np.arange(100_000)), 100) < 149
    assert chi_square(draw(np.arange(100_000), 0), 100) < 149


def test_uniform_is_uncorrelated_between_positions_and_neighbouring_seeds() -> None:
    stream, neighbour = draw(1, np.arange(50_000)), draw(2, np.arange(50_000))
    assert abs(np.corrcoef(stream[:-1], stream[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(stream, neighbour)[0, 1]) < 0.02


def test_uniform_has_no_repeats_among_many_seeds_and_positions() -> None:
    seeds, positions = np.meshgrid(np.arange(300), np.arange(300))
    assert len(np.unique(draw(seeds.ravel(), positions.ravel()))) == 90_000


def test_derive_seed_is_the_same_for_ever_and_tells_its_parts_apart() -> None:
    assert derive_seed("req-0") == derive_seed("req-0")
    assert derive_seed("ab", "c") != derive_seed("a", "bc")
    assert derive_seed(7, 1) != derive_seed(7, 2) != derive_seed(8, 1)
    assert 0 <= derive_seed("") < 2**64
