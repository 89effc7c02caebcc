"""Keeps weights in the form models load them in: fp32 under Hugging Face names, memory-mapped.

Dequantising takes seconds, mapping the result milliseconds. A kept file is one safetensors file:

    header length u64 | JSON: name -> dtype, shape, byte range | fp32 data, back to back
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from evenflow.core.errors import ModelFormatError
from evenflow.models.progress import Progress
from evenflow.models.weights.safetensors import SafetensorsWeights
from evenflow.models.weights.shapes import Shape
from evenflow.models.weights.source import WeightSource

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of every key: raised whenever the same source file would load to other tensors."""

_ITEM_BYTES = 4


def cached(
    source: WeightSource,
    shapes: Mapping[str, Shape],
    path: Path,
    progress: Progress | None = None,
) -> WeightSource:
    """Return the tensors of `source` in loaded form, making the file if need be.

    One process makes it while others wait. A damaged file is made anew. Where the file cannot be
    written (full or read-only disk), the source itself is returned and a warning logged.

    Args:
        source: where the tensors come from.
        shapes: the tensors to keep, with the shapes they have in the source.
        path: the file in loaded form; its name must identify the source's contents.
        progress: told the bytes written.
    """
    kept = _open(path, shapes)
    if kept is not None:
        return kept
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            kept = _open(path, shapes)
            if kept is None:
                _make(path, source, shapes, progress)
                kept = _open(path, shapes)
    except OSError as error:
        logger.warning("weights are not kept in loaded form: path=%s error=%s", path, error)
    return source if kept is None else kept


def _open(path: Path, shapes: Mapping[str, Shape]) -> SafetensorsWeights | None:
    """Open a kept file, or return None if it is missing, damaged or not of these shapes."""
    if not path.exists():
        return None
    try:
        kept = SafetensorsWeights([path])
    except ModelFormatError as error:
        logger.warning("damaged weights in loaded form are made anew: %s", error)
        return None
    fits = kept.names() == shapes.keys() and all(
        kept.shape(name) == shapes[name] for name in shapes
    )
    return kept if fits else None


def _make(
    path: Path, source: WeightSource, shapes: Mapping[str, Shape], progress: Progress | None
) -> None:
    for abandoned in path.parent.glob(f"{path.name}.tmp-*"):
        abandoned.unlink()  # we hold the lock, so whoever wrote it is gone
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            _write(file, source, shapes, progress)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(
    file: BinaryIO, source: WeightSource, shapes: Mapping[str, Shape], progress: Progress | None
) -> None:
    ranges: dict[str, tuple[int, int]] = {}
    total_bytes = 0
    for name, shape in shapes.items():
        ranges[name] = (total_bytes, total_bytes + math.prod(shape) * _ITEM_BYTES)
        total_bytes = ranges[name][1]
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": shape, "data_offsets": ranges[name]}
            for name, shape in shapes.items()
        }
    ).encode()
    header += b" " * (-(8 + len(header)) % 64)
    file.write(len(header).to_bytes(8, "little") + header)
    for name in shapes:
        file.write(source.tensor(name).numpy().data)
        if progress is not None:
            progress("preparing weights", ranges[name][1], total_bytes)
