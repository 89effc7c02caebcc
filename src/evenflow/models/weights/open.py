"""From model files to a description and its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from evenflow.core.errors import ModelFormatError, ModelNotFoundError
from evenflow.core.gguf_file import GGUFFile
from evenflow.models.progress import Progress
from evenflow.models.sources import ModelFiles
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.dummy import DummyWeights
from evenflow.models.weights.gguf import GGUFWeights
from evenflow.models.weights.gguf_spec import spec_from_gguf
from evenflow.models.weights.hf_config import spec_from_hf_config
from evenflow.models.weights.loaded_cache import FORMAT_VERSION, cached
from evenflow.models.weights.safetensors import SafetensorsWeights, weight_files
from evenflow.models.weights.shapes import Shape, tensor_shapes
from evenflow.models.weights.source import WeightSource

LoadFormat = Literal["auto", "dummy"]


def open_weights(
    files: ModelFiles,
    *,
    load_format: LoadFormat = "auto",
    weight_cache_dir: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[ModelSpec, WeightSource]:
    """Describe a model and open its weights; nothing is read into memory yet.

    Args:
        files: the model, from `resolve`.
        load_format: "dummy" makes random weights of the model's shapes instead.
        weight_cache_dir: where GGUF weights are kept in loaded form; None keeps none.
        seed: of dummy weights.
        progress: told the bytes written while weights are brought into loaded form.

    Raises:
        UnsupportedModelError: evenflow does not have the architecture, or a feature of it.
        ModelFormatError: a file is damaged, or lacks a tensor.
        ModelNotFoundError: a file is missing.
    """
    if files.kind == "hf":
        spec = _hf_spec(files.path)
        if load_format == "dummy":
            return spec, DummyWeights(spec, seed)
        source: WeightSource = SafetensorsWeights(weight_files(files.path))
        _check(source, tensor_shapes(spec), files.path)
        return spec, source
    file = GGUFFile(files.path)
    spec = spec_from_gguf(file)
    if load_format == "dummy":
        return spec, DummyWeights(spec, seed)
    shapes = tensor_shapes(spec)
    source = GGUFWeights(file, spec)
    _check(source, shapes, files.path)
    if weight_cache_dir is not None:
        key = f"{files.path.stem}-v{FORMAT_VERSION}-{file.fingerprint()[:32]}.safetensors"
        source = cached(source, shapes, weight_cache_dir / key, progress)
    return spec, source


def _hf_spec(directory: Path) -> ModelSpec:
    config = _read_json(directory / "config.json")
    generation_config = directory / "generation_config.json"
    return spec_from_hf_config(
        config, _read_json(generation_config) if generation_config.exists() else None
    )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelNotFoundError(f"cannot read {path}", why=str(error)) from error
    except ValueError as error:
        raise ModelFormatError(f"{path} is not JSON", why=str(error)) from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path} holds no JSON object")
    return value


def _check(source: WeightSource, shapes: Mapping[str, Shape], path: Path) -> None:
    """Refuse a checkpoint whose tensors are not those that its own description calls for."""
    names = source.names()
    wrong = [
        f"{name} is {source.shape(name)}, not {shape}"
        if name in names
        else f"{name} {shape} is missing"
        for name, shape in shapes.items()
        if name not in names or source.shape(name) != shape
    ]
    if wrong:
        raise ModelFormatError(
            f"{path} does not hold the tensors its description calls for",
            why=f"{len(wrong)} of {len(shapes)} are wrong: {'; '.join(wrong[:3])}",
            fix="fetch or convert the model again",
        )
