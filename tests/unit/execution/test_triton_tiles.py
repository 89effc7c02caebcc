"""Sizes of attention's pieces of work: what the kernels rely on holds for every GPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from evenflow.execution.kernels.triton.tiles import Tile, candidate_tiles, choose_tiles

HEAD_DIMS = [64, 80, 96, 128, 256]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)]
EVERY = list(itertools.product(HEAD_DIMS, DTYPES, CAPABILITIES))


@pytest.mark.parametrize(("head_dim", "dtype", "capability"), EVERY)
def test_candidates_are_sizes_that_the_kernels_take(
    head_dim: int, dtype: torch.dtype, capability: tuple[int, int]
) -> None:
    candidates = candidate_tiles(head_dim, dtype, capability)
    assert candidates[0] == choose_tiles(head_dim, dtype, capability)
    assert len(set(candidates)) == len(candidates) > 1
    for tiles in candidates:
        for tile in (tiles.prefill, tiles.decode):
            for size in (tile.rows, tile.keys, tile.num_warps):
                assert size & (size - 1) == 0
            assert min(tile.rows, tile.keys) >= 16
        assert tiles.split_keys % tiles.decode.keys == 0


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_splits_are_the_same_on_every_gpu(head_dim: int, dtype: torch.dtype) -> None:
    found = {
        (tiles.split_keys, tiles.max_splits)
        for capability in CAPABILITIES
        for tiles in candidate_tiles(head_dim, dtype, capability)
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("head_dim", "capability", "expected"),
    [
        (128, (9, 0), Tile(128, 64, 8, 3)),
        (64, (9, 0), Tile(128, 128, 8, 3)),
        (256, (9, 0), Tile(128, 64, 8, 2)),
        (128, (8, 0), Tile(128, 64, 8, 3)),
        (128, (8, 9), Tile(128, 64, 8, 2)),
        (256, (8, 9), Tile(64, 32, 4, 2)),
    ],
)
def test_prefill_tile_shrinks_with_the_shared_memory_of_the_gpu(
    head_dim: int, capability: tuple[int, int], expected: Tile
) -> None:
    assert choose_tiles(head_dim, torch.bfloat16, capability).prefill == expected
