"""How large a piece of attention one program holds, by head size, dtype and generation of GPU.

A table with reasons instead of tuning at the start: a start must be quick, and a size that is
chosen by a stopwatch may change from start to start. `candidate_tiles` lists what a benchmark can
try when a new GPU comes out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

_HOPPER = (9, 0)
_SHARED_BYTES = {(8, 0): 163 << 10, (8, 7): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10}
_LEAST_SHARED_BYTES = 99 << 10  # what other GPUs since Ampere give one program
_SPARE_BYTES = 8 << 10  # of it, for weights and sums on their way between warps
_SPLIT_BYTES = 65_536  # of keys; enough work to hide the start of a program behind it
_MAX_SPLITS = 64  # with 8 KV heads, enough for all processors to share one request
_PROGRAMS_PER_PROCESSOR = 4  # decode programs that a multiprocessor holds at once


@dataclass(slots=True, frozen=True)
class Tile:
    """The work of one program in one step of its loop, and what the compiler is told.

    Attributes:
        rows: pairs of a query token and a query head; a power of two, at least 16.
        keys: keys per step; a power of two, at least 16.
        num_warps: warps that share the rows.
        num_stages: steps whose loads are in flight at once.
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int


@dataclass(slots=True, frozen=True)
class Tiles:
    """Everything that `TritonAttention` may choose freely.

    Attributes:
        prefill: tile of requests with several new tokens.
        decode: tile of requests with one; its rows are the heads of a group, the rest is padding.
        split_keys: keys whose partial softmax is one record in decode; a multiple of
            `decode.keys`. It fixes the order of sums, so it follows from head size and dtype alone.
        max_splits: most records per request and KV head; longer contexts have longer splits.
        programs_per_processor: decode work is spread over this many programs per multiprocessor.
    """

    prefill: Tile
    decode: Tile
    split_keys: int
    max_splits: int = _MAX_SPLITS
    programs_per_processor: int = _PROGRAMS_PER_PROCESSOR


def choose_tiles(head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    """Return the sizes to use.

    Args:
        head_dim: entries per head.
        dtype: of the stored keys and values.
        capability: the GPU's compute capability, (8, 0) for A100, (9, 0) for H100 and H200.
    """
    return Tiles(
        prefill=_prefill_tile(head_dim, dtype, capability),
        decode=_decode_tile(head_dim, dtype),
        split_keys=_split_keys(head_dim, dtype),
    )


def candidate_tiles(head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> list[Tiles]:
    """Return the chosen sizes and others that fit the GPU, for a benchmark to compare."""
    chosen = choose_tiles(head_dim, dtype, capability)
    prefill = [
        Tile(rows, keys, num_warps, num_stages)
        for rows, num_warps in [(64, 4), (128, 4), (128, 8)]
        for keys in (32, 64, 128)
        for num_stages in (2, 3)
    ]
    decode = [
        Tile(16, keys, num_warps, num_stages)
        for keys in (32, 64, 128)
        for num_warps in (2, 4)
        for num_stages in (2, 3, 4)
    ]
    variants = [
        chosen,
        *(replace(chosen, prefill=tile) for tile in prefill),
        *(replace(chosen, decode=tile) for tile in decode),
    ]
    return [
        tiles
        for index, tiles in enumerate(variants)
        if tiles not in variants[:index]
        and _fits(tiles.prefill, head_dim, dtype, capability)
        and _fits(tiles.decode, head_dim, dtype, capability)
    ]


def _prefill_tile(head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tile:
    """Fill the tensor cores without spilling the fp32 sums (rows x head_dim) from registers."""
    if dtype == torch.float32:
        # No tensor cores: fp32 stays exact. Small tiles keep operands and sums in registers.
        return Tile(rows=16, keys=32, num_warps=4, num_stages=1)
    if head_dim > 128:
        # 128 x 256 sums take all registers of eight warps.
        wanted = [Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 32, 4, 2)]
    elif capability >= _HOPPER:
        # Two groups of four warps, each with 64 rows: the smallest product a Hopper core takes.
        wanted = [Tile(128, 64 if head_dim > 64 else 128, 8, 3), Tile(128, 64, 8, 2)]
    elif head_dim > 64:
        wanted = [Tile(128, 64, 8, 3), Tile(128, 64, 8, 2)]
    else:
        wanted = [Tile(128, 64, 4, 3)]
    smallest = Tile(64, 32, 4, 2)
    fitting = (tile for tile in wanted if _fits(tile, head_dim, dtype, capability))
    return next(fitting, smallest)


def _decode_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    """Keep some 64 KiB of keys and values in flight per program; arithmetic is free."""
    if dtype == torch.float32:
        return Tile(rows=16, keys=32, num_warps=4, num_stages=2)
    return Tile(rows=16, keys=64 if head_dim <= 128 else 32, num_warps=4, num_stages=3)


def _split_keys(head_dim: int, dtype: torch.dtype) -> int:
    """Return how many keys take some 64 KiB: 256 for heads of 128 entries in 16 bits."""
    return max(128, _SPLIT_BYTES // (head_dim * dtype.itemsize) // 128 * 128)


def _fits(tile: Tile, head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> bool:
    """Say whether a program's queries, keys and values fit the GPU's shared memory.

    Keys and values of the step at work have left it by then, but for Hopper's products of 64 rows
    and more, which read them there.
    """
    row_bytes = max(16, 1 << (head_dim - 1).bit_length()) * dtype.itemsize
    reads_shared = capability[0] == _HOPPER[0] and tile.rows >= 64
    num_steps = tile.num_stages if reads_shared else max(1, tile.num_stages - 1)
    needed = row_bytes * (tile.rows + 2 * tile.keys * num_steps)
    return needed + _SPARE_BYTES <= _SHARED_BYTES.get(capability, _LEAST_SHARED_BYTES)
