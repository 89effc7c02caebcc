"""Weights from safetensors files: one file, or shards with an index."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from evenflow.core.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from evenflow.execution.ops import QuantisedRows

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

# The text part of a multimodal checkpoint, as different versions of transformers wrote it.
_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a model directory.

    Raises:
        ModelNotFoundError: there are none, or some that the index names are missing.
        ModelFormatError: the index is damaged.
    """
    index = directory / INDEX_FILE
    names = _shard_names(index) if index.exists() else [SINGLE_FILE]
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ModelNotFoundError(
            f"{directory} lacks {len(missing)} of {len(names)} weight files",
            why=f"missing: {', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}",
            fix="complete the directory with safetensors files, or use --load-format dummy",
        )
    return [directory / name for name in names]


def _shard_names(index: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFormatError(f"{index} is not an index of shards", why=repr(error)) from error
    if outside or not shards:
        raise ModelFormatError(
            f"{index} names no files of its own directory", why=f"it names {outside}"
        )
    return shards


@dataclass(slots=True, frozen=True)
class _Stored:
    """Where a tensor lies: `num_bytes` bytes from `offset`, counted from the file's start."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class SafetensorsWeights:
    """The tensors of some safetensors files, memory-mapped and converted to fp32 one at a time.

    Each tensor is a mapping of its own, so that its pages go when it goes. One that is fp32 in the
    file is a private view of its mapping and takes no memory of its own until written to.

    Args:
        files: the shards.

    Raises:
        ModelFormatError: a file is damaged.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._tensors: dict[str, _Stored] = {}
        for path in files:
            self._tensors.update(_contents(path))

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading its data."""
        return self._locate(name).shape

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor as contiguous fp32.

        Raises:
            ModelFormatError: there is no such tensor, or its file has changed since it was opened.
            UnsupportedModelError: it is stored in a quantised or integer type.
        """
        stored = self._locate(name)
        if stored.dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"the tensor {name!r} is stored as {stored.dtype}",
                why="quantised safetensors are not read",
                fix="use the checkpoint in bf16, fp16 or fp32, or a GGUF file",
            )
        try:
            values = _mapped(stored)
        except (OSError, ValueError) as error:
            raise ModelFormatError(
                f"{stored.path} has changed while it was read", why=str(error), fix="start again"
            ) from error
        return values.to(torch.float32)

    def stored(self, name: str) -> QuantisedRows | None:
        """Return None: tensors are read as fp32."""
        return None

    def _locate(self, name: str) -> _Stored:
        if name not in self._tensors:
            raise ModelFormatError(f"the checkpoint has no tensor {name!r}")
        return self._tensors[name]


def _contents(path: Path) -> dict[str, _Stored]:
    """Return the tensors of one file by name.

    header length u64 | JSON: name -> dtype, shape, range of bytes after the header | data
    """
    try:
        with safe_open(path, framework="np"):
            pass  # it has checked that the ranges fit the shapes and the file
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
    except (SafetensorError, OSError) as error:
        raise ModelFormatError(
            f"{path} is not a sound safetensors file", why=str(error), fix="fetch it again"
        ) from error
    header.pop("__metadata__", None)
    contents = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        offset = 8 + header_bytes + start
        contents[_text_name(name)] = _Stored(
            path, entry["dtype"], tuple(entry["shape"]), offset, end - start
        )
    return contents


def _mapped(stored: _Stored) -> torch.Tensor:
    """Map the bytes of one tensor alone, as a tensor of its stored type."""
    start = stored.offset - stored.offset % mmap.ALLOCATIONGRANULARITY
    with stored.path.open("rb") as file:
        mapping = mmap.mmap(
            file.fileno(),
            stored.offset + stored.num_bytes - start,
            access=mmap.ACCESS_COPY,
            offset=start,
        )
    values = torch.frombuffer(mapping, dtype=_DTYPES[stored.dtype], offset=stored.offset - start)
    return values.view(stored.shape)


def _text_name(name: str) -> str:
    for prefix, replacement in _PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name
