"""From model files to a description and its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(slots=True, frozen=True)
class Checkpoint:
    """A model's files, described; its tensors are read only when asked for.

    Attributes:
        path: the directory or file.
        spec: the model's numbers.
        gguf: the open file, if the model is one.
    """

    path: Path
    spec: ModelSpec
    gguf: GGUFFile | None = None

    def weights(
        self,
        *,
        load_format: LoadFormat = "auto",
        weight_cache_dir: Path | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> WeightSource:
        """Open the weights, having brought those of a GGUF file into loaded form.

        Args:
            load_format: "dummy" makes random weights of the model's shapes instead.
            weight_cache_dir: where GGUF weights are kept in loaded form; None keeps none.
            seed: of dummy weights.
            progress: told the bytes written while weights are brought into loaded form.

        Raises:
            UnsupportedModelError: a tensor has no place in the architecture.
            ModelFormatError: a file is damaged, or lacks a tensor.
            ModelNotFoundError: a file is missing.
        """
        if load_format == "dummy":
            return DummyWeights(self.spec, seed)
        shapes = tensor_shapes(self.spec)
        if self.gguf is None:
            source: WeightSource = SafetensorsWeights(weight_files(self.path))
            check_tensors(source, shapes, self.path)
            return source
        source = GGUFWeights(self.gguf, self.spec)
        check_tensors(source, shapes, self.path)
        if weight_cache_dir is None:
            return source
        key = f"{self.path.stem}-v{FORMAT_VERSION}-{self.gguf.fingerprint()[:32]}.safetensors"
        return cached(source, shapes, weight_cache_dir / key, progress)

    def fingerprint(self, load_format: LoadFormat = "auto", seed: int = 0) -> str:
        """Return a name for the weights that no others have, without reading them all.

        Args:
            load_format: as for `weights`.
            seed: as for `weights`.
        """
        if load_format == "dummy":
            return hashlib.sha256(repr((self.spec, "dummy", seed)).encode()).hexdigest()
        if self.gguf is not None:
            return self.gguf.fingerprint()
        files = [self.path / "config.json", *weight_files(self.path)]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr((self.spec, stats)).encode()).hexdigest()


def open_checkpoint(files: ModelFiles) -> Checkpoint:
    """Describe a model; no weight is read.

    Args:
        files: the model, from `resolve`.

    Raises:
        UnsupportedModelError: evenflow does not have the architecture, or a feature of it.
        ModelFormatError: a file is damaged.
        ModelNotFoundError: a file is missing.
    """
    if files.kind == "hf":
        return Checkpoint(files.path, _hf_spec(files.path))
    gguf = GGUFFile(files.path)
    return Checkpoint(files.path, spec_from_gguf(gguf), gguf)


def _hf_spec(directory: Path) -> ModelSpec:
    config = read_json(directory / "config.json")
    generation_config = directory / "generation_config.json"
    return spec_from_hf_config(
        config, read_json(generation_config) if generation_config.exists() else None
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """Read the JSON object in a file.

    Raises:
        ModelNotFoundError: the file cannot be read.
        ModelFormatError: it holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelNotFoundError(f"cannot read {path}", why=str(error)) from error
    except ValueError as error:
        raise ModelFormatError(f"{path} is not JSON", why=str(error)) from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path} holds no JSON object")
    return value


def check_tensors(source: WeightSource, shapes: Mapping[str, Shape], path: Path) -> None:
    """Refuse a checkpoint whose tensors are not those that its own description calls for.

    Raises:
        ModelFormatError: one is missing or has another shape.
    """
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
