"""From model files to a description and its weights."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evenflow.core.errors import ModelFormatError, ModelNotFoundError
from evenflow.core.gguf_file import GGMLType, GGUFFile
from evenflow.execution.kernels.quantised import PACKED_TYPES, packed_bytes
from evenflow.models.progress import Progress
from evenflow.models.sources import ModelFiles
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.dummy import DummyWeights
from evenflow.models.weights.gguf import GGUFWeights
from evenflow.models.weights.gguf_spec import spec_from_gguf
from evenflow.models.weights.hf_config import spec_from_hf_config
from evenflow.models.weights.loaded_cache import FORMAT_VERSION, cached
from evenflow.models.weights.precision import Precision
from evenflow.models.weights.rounding import RoundedWeights, rounded_types
from evenflow.models.weights.safetensors import SafetensorsWeights, weight_files
from evenflow.models.weights.shapes import Shape, tensor_shapes
from evenflow.models.weights.source import WeightSource

logger = logging.getLogger(__name__)

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

    def is_quantised(self, load_format: LoadFormat = "auto") -> bool:
        """Return whether the weights are stored in types that kernels take as they are.

        Args:
            load_format: as for `weights`.
        """
        return load_format != "dummy" and not self._storage_types().isdisjoint(PACKED_TYPES)

    def weights(
        self,
        *,
        linear: Precision = "exact",
        load_format: LoadFormat = "auto",
        weight_cache_dir: Path | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> WeightSource:
        """Open the weights, having brought those of a GGUF file into loaded form if all are fp32.

        Under "w4a8" and "w8a8", a quantised file gives its weights as they are stored, or as fp32
        where no kernel takes their type. Other weights are rounded to 4 or 8 bits as they are read.

        Args:
            linear: in which form linear weights are wanted.
            load_format: "dummy" makes random weights of the model's shapes instead.
            weight_cache_dir: where GGUF weights are kept in loaded form; None keeps none.
            seed: of dummy weights.
            progress: told the bytes written while weights are brought into loaded form.

        Raises:
            UnsupportedModelError: a tensor has no place in the architecture.
            ModelFormatError: a file is damaged, or lacks a tensor.
            ModelNotFoundError: a file is missing.
        """
        if linear != "exact":
            return self._weights_of_few_bits(linear, load_format, seed)
        source = self._open(load_format, seed)
        if self.gguf is None or load_format == "dummy" or weight_cache_dir is None:
            return source
        key = f"{self.path.stem}-v{FORMAT_VERSION}-{self.gguf.fingerprint()[:32]}.safetensors"
        return cached(source, tensor_shapes(self.spec), weight_cache_dir / key, progress)

    def weight_bytes(
        self,
        linear: Precision,
        load_format: LoadFormat = "auto",
        *,
        bytes_per_float: int = 4,
    ) -> int:
        """Estimate the bytes that the loaded model will take, without reading any weight.

        Args:
            linear: as for `weights`.
            load_format: as for `weights`.
            bytes_per_float: of each weight that is not held in a few bits.
        """
        types = self._types_of_few_bits(linear, load_format)
        shapes = tensor_shapes(self.spec)
        held = sum(
            packed_bytes(types[name], *shape)
            if name in types
            else bytes_per_float * math.prod(shape)
            for name, shape in shapes.items()
        )
        table = "model.embed_tokens.weight"
        if self.spec.tie_word_embeddings and table not in types:
            held += bytes_per_float * math.prod(shapes[table])  # its rows, and a linear of them
        return held

    def _open(self, load_format: LoadFormat, seed: int, keep: Collection[str] = ()) -> WeightSource:
        """Open the weights, and check that they are those which the description calls for."""
        if load_format == "dummy":
            return DummyWeights(self.spec, seed)
        source: WeightSource = (
            SafetensorsWeights(weight_files(self.path))
            if self.gguf is None
            else GGUFWeights(self.gguf, self.spec, keep=keep)
        )
        check_tensors(source, tensor_shapes(self.spec), self.path)
        return source

    def _weights_of_few_bits(
        self, linear: Literal["w4a8", "w8a8"], load_format: LoadFormat, seed: int
    ) -> WeightSource:
        if not self.is_quantised(load_format):
            return RoundedWeights(self._open(load_format, seed), self.spec, linear)
        expanded = self._storage_types() - PACKED_TYPES.keys()
        if expanded:
            logger.warning(
                "weights of types without kernels are expanded to fp32: types=%s path=%s",
                ",".join(sorted(expanded)),
                self.path,
            )
        return self._open(load_format, seed, keep=PACKED_TYPES)

    def _types_of_few_bits(
        self, linear: Precision, load_format: LoadFormat
    ) -> Mapping[str, GGMLType]:
        """Return how linear weights will be stored, but for those that will be fp32."""
        if linear == "exact":
            return {}
        if self.gguf is not None and self.is_quantised(load_format):
            return GGUFWeights(self.gguf, self.spec, keep=PACKED_TYPES).stored_types
        return rounded_types(self.spec, linear)

    def _storage_types(self) -> set[str]:
        """Return the names of the types of few bits that the file has, none if it is no GGUF."""
        tensors = () if self.gguf is None else self.gguf.tensors.values()
        return {tensor.type.name for tensor in tensors if tensor.type.block_size > 1}

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
