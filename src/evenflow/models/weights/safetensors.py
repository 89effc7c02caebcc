"""Weights from safetensors files: one file, or shards with an index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from evenflow.core.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})

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


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...


class _TensorFile(Protocol):
    """What we use of `safe_open`, whose own methods are untyped."""

    def keys(self) -> list[str]: ...

    def get_slice(self, name: str) -> _Slice: ...

    def get_tensor(self, name: str) -> torch.Tensor: ...


class SafetensorsWeights:
    """The tensors of some safetensors files, memory-mapped, converted to fp32 one at a time.

    A tensor that is fp32 in the file is a private view of the mapping and takes no memory of its
    own until written to.

    Args:
        files: the shards.

    Raises:
        ModelFormatError: a file is damaged.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: dict[str, tuple[_TensorFile, str]] = {}
        for path in files:
            try:
                file: _TensorFile = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelFormatError(
                    f"{path} is not a sound safetensors file", why=str(error), fix="fetch it again"
                ) from error
            self._files.update({_text_name(name): (file, name) for name in file.keys()})  # noqa: SIM118 - not a dict

    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        return frozenset(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading its data."""
        file, stored_name = self._locate(name)
        return tuple(file.get_slice(stored_name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor as contiguous fp32.

        Raises:
            ModelFormatError: there is no such tensor.
            UnsupportedModelError: it is stored in a quantised or integer type.
        """
        file, stored_name = self._locate(name)
        values = file.get_tensor(stored_name)
        if values.dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"the tensor {name!r} is stored as {values.dtype}",
                why="quantised safetensors are not read",
                fix="use the checkpoint in bf16, fp16 or fp32, or a GGUF file",
            )
        return values.to(torch.float32).contiguous()

    def _locate(self, name: str) -> tuple[_TensorFile, str]:
        if name not in self._files:
            raise ModelFormatError(f"the checkpoint has no tensor {name!r}")
        return self._files[name]


def _text_name(name: str) -> str:
    for prefix, replacement in _PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name
