"""Reads the header of a GGUF file: metadata and where each tensor lies.

Knows: the container format, versions 2 and 3, little-endian.
Does not know: what a tensor is for, how to dequantise it.

Invariants:
    A file that opened is consistent: every tensor lies inside the file and fits its type.
    Whatever the bytes, opening raises nothing but `ModelFormatError` (`ModelNotFoundError` when the
    file cannot be read), in time and memory proportional to the file.

    magic "GGUF" | version u32 | num_tensors u64 | num_entries u64
    num_entries x (key: string | type u32 | value)
    num_tensors x (name: string | num_dims u32 | dims u64 ... | type u32 | offset u64)
    padding | tensor data                            string = length u64 | utf-8 bytes
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from evenflow.core.errors import ModelFormatError, ModelNotFoundError

MetadataValue = bool | int | float | str | list[str] | npt.NDArray[Any]
"""A metadata entry; arrays of strings are lists, arrays of numbers are numpy arrays."""


class GGMLType(NamedTuple):
    """How a kind of tensor is stored: blocks of `block_size` entries in `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int


GGML_TYPES: Mapping[int, GGMLType] = {
    0: GGMLType("F32", 1, 4),
    1: GGMLType("F16", 1, 2),
    2: GGMLType("Q4_0", 32, 18),
    3: GGMLType("Q4_1", 32, 20),
    6: GGMLType("Q5_0", 32, 22),
    7: GGMLType("Q5_1", 32, 24),
    8: GGMLType("Q8_0", 32, 34),
    9: GGMLType("Q8_1", 32, 40),
    10: GGMLType("Q2_K", 256, 84),
    11: GGMLType("Q3_K", 256, 110),
    12: GGMLType("Q4_K", 256, 144),
    13: GGMLType("Q5_K", 256, 176),
    14: GGMLType("Q6_K", 256, 210),
    15: GGMLType("Q8_K", 256, 292),
    16: GGMLType("IQ2_XXS", 256, 66),
    17: GGMLType("IQ2_XS", 256, 74),
    18: GGMLType("IQ3_XXS", 256, 98),
    19: GGMLType("IQ1_S", 256, 50),
    20: GGMLType("IQ4_NL", 32, 18),
    21: GGMLType("IQ3_S", 256, 110),
    22: GGMLType("IQ2_S", 256, 82),
    23: GGMLType("IQ4_XS", 256, 136),
    24: GGMLType("I8", 1, 1),
    25: GGMLType("I16", 1, 2),
    26: GGMLType("I32", 1, 4),
    27: GGMLType("I64", 1, 8),
    28: GGMLType("F64", 1, 8),
    29: GGMLType("IQ1_M", 256, 56),
    30: GGMLType("BF16", 1, 2),
    34: GGMLType("TQ1_0", 256, 54),
    35: GGMLType("TQ2_0", 256, 66),
    39: GGMLType("MXFP4", 32, 17),
    40: GGMLType("NVFP4", 64, 36),
    41: GGMLType("Q1_0", 128, 18),
}

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_DEFAULT_ALIGNMENT = 32

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS: Mapping[int, np.dtype[Any]] = {
    kind: np.dtype(code)
    for kind, code in {
        0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
        _BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
    }.items()
}  # fmt: skip


@dataclass(slots=True, frozen=True)
class GGUFTensor:
    """Where a tensor lies and how it is stored.

    Attributes:
        name: as written in the file.
        type: how its entries are stored.
        shape: row-major, the contiguous dimension last (the file lists it first).
        offset: first byte, counted from the start of the file.
    """

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, that is of `shape[-1]` entries."""
        return self.shape[-1] // self.type.block_size * self.type.block_bytes

    @property
    def num_rows(self) -> int:
        """Product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.num_rows * self.row_bytes


class GGUFFile:
    """A GGUF file that was opened, and of which nothing stays mapped.

    Args:
        path: the file.

    Attributes:
        path: the file.
        num_bytes: of the whole file.
        version: of the container format.
        metadata: entries by key, in file order.
        tensors: tensors by name, in file order.
        data_offset: bytes of the header, padding included.

    Raises:
        ModelNotFoundError: the file cannot be read.
        ModelFormatError: it is no GGUF file, of another version or byte order, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = _map(path)
        self.num_bytes = len(data)
        header = _Header(data, path)
        try:
            self.version, num_tensors, num_entries = header.preamble()
            self.metadata: Mapping[str, MetadataValue] = header.metadata(num_entries)
            infos = header.tensor_infos(num_tensors)
        except (struct.error, UnicodeDecodeError) as error:
            raise header.damaged(f"byte {header.position}: {error}") from error
        self.data_offset = header.aligned_position(self.metadata)
        self.tensors: Mapping[str, GGUFTensor] = header.located(infos, self.data_offset)

    def rows(self, tensor: GGUFTensor) -> npt.NDArray[np.uint8]:
        """Map the stored bytes of one tensor, (num_rows, row_bytes).

        The mapping is the array's own: its pages go when it goes, and what is written to it does
        not reach the file.

        Raises:
            ModelFormatError: the file has changed since it was opened.
        """
        start = tensor.offset - tensor.offset % mmap.ALLOCATIONGRANULARITY
        end = tensor.offset + tensor.num_bytes
        try:
            with self.path.open("rb") as file:
                mapping = mmap.mmap(
                    file.fileno(), end - start, access=mmap.ACCESS_COPY, offset=start
                )
        except (OSError, ValueError) as error:
            raise self._changed(error) from error
        flat = np.frombuffer(mapping, np.uint8, tensor.num_bytes, tensor.offset - start)
        return flat.reshape(tensor.num_rows, tensor.row_bytes)

    def fingerprint(self) -> str:
        """Return a hash that changes when the file does, without reading all of it.

        Covers size, time of modification, the whole header and 256 samples of 4 KiB.

        Raises:
            ModelFormatError: the file is gone.
        """
        size, data_offset = self.num_bytes, self.data_offset
        try:
            with self.path.open("rb") as file:
                modified_ns = os.fstat(file.fileno()).st_mtime_ns
                digest = hashlib.sha256(f"{size} {modified_ns}".encode())
                digest.update(file.read(data_offset))
                for start in range(data_offset, size, max(4096, (size - data_offset) // 256)):
                    file.seek(start)
                    digest.update(file.read(4096))
        except OSError as error:
            raise self._changed(error) from error
        return digest.hexdigest()

    def _changed(self, error: Exception) -> ModelFormatError:
        return ModelFormatError(
            f"{self.path} has changed while it was read", why=str(error), fix="start again"
        )


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelNotFoundError(f"cannot read the model file {path}", why=str(error)) from error
    except ValueError as error:  # an empty file cannot be mapped
        raise ModelFormatError(f"{path} is empty", fix="fetch it again") from error


class _Header:
    """A cursor over a header; no read goes past the end of the file unnoticed."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    def damaged(self, why: str) -> ModelFormatError:
        return ModelFormatError(
            f"{self.path} is not a sound GGUF file", why=why, fix="fetch it again"
        )

    def preamble(self) -> tuple[int, int, int]:
        """Read magic, version and the two counts."""
        if self.data[:4] != _MAGIC:
            raise self.damaged("it does not start with GGUF")
        self.position = 4
        version = self._take(_U32)
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "big-endian" if swapped in _VERSIONS else f"version {version}"
            raise ModelFormatError(
                f"{self.path} is a {kind} GGUF file",
                why="little-endian files of version 2 and 3 are read",
                fix="convert it with a current llama.cpp",
            )
        num_tensors, num_entries = self._take(_U64), self._take(_U64)
        self._check_count(num_tensors, 32, "tensors")
        self._check_count(num_entries, 13, "metadata entries")
        return version, num_tensors, num_entries

    def metadata(self, count: int) -> dict[str, MetadataValue]:
        entries: dict[str, MetadataValue] = {}
        for _ in range(count):
            key = self._string()
            if key in entries:
                raise self.damaged(f"the key {key!r} occurs twice")
            entries[key] = self._value(self._take(_U32))
        return entries

    def tensor_infos(self, count: int) -> list[GGUFTensor]:
        """Read the tensor table; offsets are still relative to the data section."""
        return [self._tensor_info() for _ in range(count)]

    def aligned_position(self, metadata: Mapping[str, MetadataValue]) -> int:
        """Return where the data section starts."""
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment is {alignment!r}, not a power of two")
        return -(-self.position // alignment) * alignment

    def located(self, infos: list[GGUFTensor], data_offset: int) -> dict[str, GGUFTensor]:
        """Turn relative offsets into absolute ones and check every range."""
        tensors: dict[str, GGUFTensor] = {}
        for info in infos:
            tensor = GGUFTensor(info.name, info.type, info.shape, data_offset + info.offset)
            end = tensor.offset + tensor.num_bytes
            if end > len(self.data):
                raise self.damaged(
                    f"tensor {info.name!r} ends at byte {end} of a file of {len(self.data)} bytes"
                )
            if info.name in tensors:
                raise self.damaged(f"the tensor {info.name!r} occurs twice")
            tensors[info.name] = tensor
        return tensors

    def _take(self, layout: struct.Struct) -> int:
        (value,) = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return int(value)

    def _check_count(self, count: int, item_bytes: int, what: str) -> None:
        left = len(self.data) - self.position
        if count * item_bytes > left:
            raise self.damaged(f"it announces {count} {what} with {left} bytes left")

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        """Read strings in one pass; half a million of them are common, hence the local names."""
        data, position, end = self.data, self.position, len(self.data)
        unpack = _U64.unpack_from
        strings = []
        for _ in range(count):
            start = position + 8
            position = start + unpack(data, position)[0]
            if position > end:
                raise self.damaged(f"the string at byte {start} runs past the end of the file")
            strings.append(data[start:position].decode())
        self.position = position
        return strings

    def _numbers(self, kind: int, count: int) -> npt.NDArray[Any]:
        dtype = _NUMBERS[kind]
        self._check_count(count, dtype.itemsize, "numbers")
        values = np.frombuffer(self.data, dtype, count, self.position)
        self.position += values.nbytes
        return values != 0 if kind == _BOOL else values.copy()  # and not a view of the mapping

    def _value(self, kind: int) -> MetadataValue:
        if kind in _NUMBERS:
            value: bool | int | float = self._numbers(kind, 1)[0].item()
            return value
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        raise self.damaged(f"value type {kind} before byte {self.position} is unknown")

    def _array(self) -> MetadataValue:
        kind, count = self._take(_U32), self._take(_U64)
        if kind in _NUMBERS:
            return self._numbers(kind, count)
        if kind == _STRING:
            self._check_count(count, 8, "strings")
            return self._strings(count)
        raise self.damaged(f"an array of value type {kind} before byte {self.position}")

    def _tensor_info(self) -> GGUFTensor:
        name = self._string()
        num_dims = self._take(_U32)
        if not 1 <= num_dims <= _MAX_DIMS:
            raise self.damaged(f"tensor {name!r} has {num_dims} dimensions")
        shape = tuple(self._take(_U64) for _ in range(num_dims))[::-1]
        number, offset = self._take(_U32), self._take(_U64)
        if number not in GGML_TYPES:
            raise self.damaged(f"tensor {name!r} has the unknown type {number}")
        storage = GGML_TYPES[number]
        if 0 in shape or shape[-1] % storage.block_size:
            raise self.damaged(f"tensor {name!r} of type {storage.name} has the shape {shape}")
        return GGUFTensor(name, storage, shape, offset)
