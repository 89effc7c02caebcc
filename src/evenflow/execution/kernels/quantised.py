"""Linears over weights as a GGUF file stores them, with int8 activations.

A weight is packed once, losslessly: same codes and scales, laid out in tiles of 16 rows for the
kernels (`native/source/packed.h` has the layout). The rows of x are rounded to int8, each group of
32 entries with a scale of its own, and products of codes are summed exactly.

Knows: which types can be packed, packed weights, argument words.
Does not know: files, models.

Invariant: row i of a result has the same bits for any number of rows, of threads, and on any
instruction set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from evenflow.core.errors import ConfigError
from evenflow.core.gguf_file import GGMLType
from evenflow.execution.kernels.cpu_kernels import QuantisedKernels
from evenflow.execution.kernels.jobs import (
    EMBED_LAYOUT,
    LINEAR_LAYOUT,
    PACK_LAYOUT,
    EmbedJob,
    LinearPart,
    PackJob,
)
from evenflow.execution.kernels.parallel import Arguments, ThreadTeam
from evenflow.execution.ops import QuantisedRows
from evenflow.execution.torch.huge_pages import Arena, drop_pages

TILE_ROWS = 16
GROUP = 32
_CACHE_LINE = 64
_SLICE_BYTES = 1 << 24  # of a mapped weight that are in memory at once while it is packed
_SERIAL_BELOW = 1 << 17  # bytes of weights x rows; under this much, waking threads does not pay
_ROW_GROUP_BYTES = 52  # of rounded rows, for each group: codes, scale and sums
_MIN_ROUNDED_ROWS = 8  # that kernels work on together
_ROUNDED_BYTES = 1 << 18  # of rounded rows, for each thread: a share of its second-level cache

# The bytes that a block of a GGUF file takes when packed, for the 16 rows of a tile. The order
# numbers the types for the kernels.
PACKED_TYPES: Mapping[str, int] = {
    "Q4_0": 256 + 32,
    "Q4_1": 256 + 64,
    "Q5_0": 512 + 32,
    "Q5_1": 512 + 64,
    "Q8_0": 512 + 32,
    "Q4_K": 8 * (256 + 32) + 64,
    "Q5_K": 8 * (512 + 32) + 64,
    "Q6_K": 8 * (512 + 32) + 32,
}
_NUMBERS = {name: number for number, name in enumerate(PACKED_TYPES)}


@dataclass(slots=True, frozen=True)
class PackedWeight:
    """A quantised weight as the kernels read it.

    Attributes:
        type: number of the type.
        tiles: (out_features / 16 rounded up, bytes per tile), uint8.
        out_features: rows.
        in_features: entries per row.
    """

    type: int
    tiles: torch.Tensor
    out_features: int
    in_features: int


class Workspace:
    """What all linears of a model share: kernels, threads, memory.

    One thread at a time may use it.

    Args:
        kernels: the kernels.
        team: the threads to use; its own by default.

    Attributes:
        kernels: likewise.
        team: the threads.
        arena: memory of weights.
        arguments: those of the `linear` kernel.
    """

    def __init__(self, kernels: QuantisedKernels, team: ThreadTeam | None = None) -> None:
        self.kernels = kernels
        self.team = team or ThreadTeam()
        self.arena = Arena()
        self.arguments = Arguments(LINEAR_LAYOUT)
        self._rounded = torch.empty(0, dtype=torch.uint8)
        self._address = 0

    def rounded(self, num_bytes: int) -> int:
        """Return the address of memory for rounded rows, so many bytes at least."""
        if num_bytes > self._rounded.numel():
            self._rounded = torch.empty(num_bytes, dtype=torch.uint8)
            self._address = self._rounded.data_ptr()
        self.team.keep(self._rounded)
        return self._address


def pack(rows: QuantisedRows, workspace: Workspace) -> PackedWeight:
    """Copy a stored weight into the layout of the kernels.

    Raises:
        ConfigError: of a type that is not among `PACKED_TYPES`.
    """
    name = rows.type.name
    if name not in PACKED_TYPES:
        raise ConfigError(
            f"{name} weights cannot be multiplied as they are stored",
            why=f"there are kernels for {', '.join(PACKED_TYPES)}",
            fix="--linear exact",
        )
    out_features = rows.rows.shape[0]
    tile_bytes = _tile_bytes(rows.type, rows.in_features)
    num_tiles = -(-out_features // TILE_ROWS)
    tiles = workspace.arena.take(num_tiles * tile_bytes).view(num_tiles, tile_bytes)
    slice_tiles = max(1, _SLICE_BYTES // (TILE_ROWS * rows.rows.stride(0)))
    for first in range(0, num_tiles, slice_tiles):
        source = rows.rows[first * TILE_ROWS : (first + slice_tiles) * TILE_ROWS]
        job = PackJob(
            type=_NUMBERS[name],
            num_rows=source.shape[0],
            num_groups=rows.in_features // GROUP,
            rows=source.data_ptr(),
            row_bytes=source.stride(0),
            tiles=tiles[first].data_ptr(),
            tile_bytes=tile_bytes,
        )
        workspace.team.run(workspace.kernels.pack, Arguments(PACK_LAYOUT).pack(*job))
        if rows.is_mapped:
            drop_pages(source)
    return PackedWeight(_NUMBERS[name], tiles, out_features, rows.in_features)


def packed_bytes(storage: GGMLType, out_features: int, in_features: int) -> int:
    """Return what a weight of one of `PACKED_TYPES` takes once it is packed."""
    return -(-out_features // TILE_ROWS) * _tile_bytes(storage, in_features)


def _tile_bytes(storage: GGMLType, in_features: int) -> int:
    num_bytes = in_features // storage.block_size * PACKED_TYPES[storage.name]
    return num_bytes + -num_bytes % _CACHE_LINE


class PackedLinear:
    """The function x -> x @ weight.T + bias, for quantised weights side by side.

    Args:
        weights: of equal in_features; their outputs follow each other.
        bias: (out_features,), fp32.
        workspace: shared with other linears.
    """

    def __init__(
        self, weights: Sequence[PackedWeight], bias: torch.Tensor | None, workspace: Workspace
    ) -> None:
        self.weights = tuple(weights)
        self.in_features = weights[0].in_features
        self.out_features = sum(weight.out_features for weight in weights)
        self._bias = None if bias is None else bias.float().contiguous()
        self._workspace = workspace
        self._weight_bytes = sum(weight.tiles.numel() for weight in weights)
        self._parts = _parts(self.weights)
        self._num_groups = self.in_features // GROUP
        least = _MIN_ROUNDED_ROWS * self._num_groups * _ROW_GROUP_BYTES
        self._rounded_bytes = max(_ROUNDED_BYTES, least + -least % _CACHE_LINE)
        self._constants = (
            self._rounded_bytes,
            self._num_groups,
            self.out_features,
            0 if self._bias is None else self._bias.data_ptr(),
            self._parts.data_ptr(),
            len(self.weights),
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, out_features) for x: (n, in_features), fp32; rows may be strided."""
        num_rows = x.shape[0]
        row_stride, entry_stride = x.stride()
        if entry_stride != 1:
            x = x.contiguous()
            row_stride = self.in_features
        out = self._workspace.team.empty(num_rows, self.out_features)
        workspace = self._workspace
        serial = num_rows * self._weight_bytes < _SERIAL_BELOW
        num_threads = workspace.team.size(serial=serial)
        arguments = workspace.arguments.pack(
            num_rows,
            x.data_ptr(),
            4 * row_stride,
            out.data_ptr(),
            workspace.rounded(num_threads * self._rounded_bytes),
            num_threads,
            *self._constants,
        )
        workspace.team.run(workspace.kernels.linear, arguments, serial=serial)
        return out

    def rows(self, ids: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        """Return rows of the weight, dequantised: (n, in_features), fp32, for ids: (n,), int64.

        Only of a single weight. All entries are multiplied by `factor`.
        """
        (weight,) = self.weights
        ids = ids.contiguous()
        out = self._workspace.team.empty(ids.shape[0], weight.in_features)
        job = EmbedJob(
            type=weight.type,
            num_ids=ids.shape[0],
            num_groups=self._num_groups,
            tiles=weight.tiles.data_ptr(),
            tile_bytes=weight.tiles.stride(0),
            ids=ids.data_ptr(),
            out=out.data_ptr(),
        )
        arguments = Arguments(EMBED_LAYOUT).pack(*job, factor)
        self._workspace.team.run(self._workspace.kernels.embed, arguments, serial=len(ids) < 64)
        return out


def quantised_linear(
    weights: Sequence[QuantisedRows], bias: torch.Tensor | None, workspace: Workspace
) -> PackedLinear:
    """Pack weights and return the linear of them, side by side."""
    return PackedLinear([pack(rows, workspace) for rows in weights], bias, workspace)


def _parts(weights: Sequence[PackedWeight]) -> torch.Tensor:
    """Return the words that describe the weights, `LinearPart` after `LinearPart`."""
    ends = accumulate(weight.out_features for weight in weights)
    words: list[int] = []
    for weight, end in zip(weights, ends, strict=True):
        words += LinearPart(
            type=weight.type,
            num_rows=weight.out_features,
            tiles=weight.tiles.data_ptr(),
            tile_bytes=weight.tiles.stride(0),
            first_column=end - weight.out_features,
        )
    return torch.tensor(words, dtype=torch.int64)
