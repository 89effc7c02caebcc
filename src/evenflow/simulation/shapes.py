"""Models, devices and links in numbers, each read from one data file.

A new device is a TOML file in `devices/`, or anywhere, named by its path; the same for models.
"""

from __future__ import annotations

import math
import tomllib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evenflow.core.errors import ConfigError
from evenflow.memory.sizing import format_bytes

_SUFFIX = ".toml"


class _Described(BaseModel):
    """Read from a data file: frozen, nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MoeShape(_Described):
    """The experts of a sparse model.

    Attributes:
        num_experts: routed experts of a layer.
        num_experts_per_token: of them, how many a token visits.
        intermediate_size: width of one expert.
        num_shared_experts: experts that every token visits besides.
        num_dense_layers: leading layers with an ordinary MLP.
    """

    num_experts: int = Field(ge=1)
    num_experts_per_token: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_shared_experts: int = Field(default=0, ge=0)
    num_dense_layers: int = Field(default=0, ge=0)

    def expected_touched(self, num_tokens: int) -> float:
        """Return how many routed experts some tokens visit if routing is uniform."""
        missed = (1 - self.num_experts_per_token / self.num_experts) ** num_tokens
        return self.num_experts * (1 - missed)


class MlaShape(_Described):
    """Multi-head latent attention, which caches one compressed vector instead of keys and values.

    Attributes:
        kv_rank: entries of the compressed vector.
        rope_dim: entries of the rotated key that is cached beside it, shared by all heads.
        nope_dim: entries of a head's query and key that are not rotated.
        value_dim: entries of a head's value.
    """

    kv_rank: int = Field(ge=1)
    rope_dim: int = Field(ge=1)
    nope_dim: int = Field(ge=1)
    value_dim: int = Field(ge=1)


class ModelShape(_Described):
    """A decoder-only model.

    Attributes:
        name: short name.
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        intermediate_size: width of the dense MLP.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: entries per head.
        vocab_size: rows of the embedding.
        max_model_len: longest context the model was made for, in tokens.
        source: where the figures come from.
        num_mlp_matrices: 3 with a gate, 2 without.
        tie_word_embeddings: whether the output matrix is the embedding.
        dtype_bytes: bytes of a weight and of an entry of the KV cache.
        moe: the experts of a sparse model.
        mla: latent attention, where the model has it.
    """

    name: str
    num_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    max_model_len: int = Field(ge=1)
    source: str = Field(min_length=1)
    num_mlp_matrices: int = Field(default=3, ge=2, le=3)
    tie_word_embeddings: bool = False
    dtype_bytes: int = Field(default=2, ge=1, le=4)
    moe: MoeShape | None = None
    mla: MlaShape | None = None

    @property
    def kv_bytes_per_token_per_layer(self) -> int:
        """Bytes that the KV cache takes for a token in one layer."""
        if self.mla is not None:
            return (self.mla.kv_rank + self.mla.rope_dim) * self.dtype_bytes
        return 2 * self.num_kv_heads * self.head_dim * self.dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that the KV cache takes for a token in all layers."""
        return self.num_layers * self.kv_bytes_per_token_per_layer

    @property
    def num_params(self) -> int:
        """Weights, without biases."""
        hidden = self.hidden_size
        embeddings = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2)
        norms = 2 * self.num_layers * hidden
        attention = self.num_layers * sum(k * n for k, n in self.attention_matrices())
        num_sparse = self.num_sparse_layers
        mlp = (self.num_layers - num_sparse) * self._mlp_params(self.intermediate_size)
        if self.moe is not None:
            num_experts = self.moe.num_experts + self.moe.num_shared_experts
            expert = self._mlp_params(self.moe.intermediate_size)
            mlp += num_sparse * (num_experts * expert + hidden * self.moe.num_experts)
        return embeddings + norms + attention + mlp

    @property
    def num_sparse_layers(self) -> int:
        """Layers with experts."""
        return self.num_layers - self.moe.num_dense_layers if self.moe is not None else 0

    def attention_matrices(self, tp: int = 1) -> list[tuple[int, int]]:
        """Return the projections of one layer's attention on one of `tp` devices.

        Each is (inputs, outputs). Heads are divided; key and value heads are repeated where there
        are fewer than devices, and the compression of a latent vector is.
        """
        hidden, heads = self.hidden_size, self.num_heads // tp
        if self.mla is None:
            wide = (heads + 2 * math.ceil(self.num_kv_heads / tp)) * self.head_dim
            return [(hidden, wide), (heads * self.head_dim, hidden)]
        mla = self.mla
        return [
            (hidden, heads * (mla.nope_dim + mla.rope_dim)),
            (hidden, mla.kv_rank + mla.rope_dim),
            (mla.kv_rank, heads * (mla.nope_dim + mla.value_dim)),
            (heads * mla.value_dim, hidden),
        ]

    def kv_bytes_per_token_per_gpu(self, tp: int, pp: int) -> int:
        """Return the bytes of KV cache that a token takes on the fullest of tp * pp devices.

        Heads are divided among tp devices, and repeated where there are fewer; a latent vector is
        the same for all heads, so every device holds it.
        """
        layer = self.kv_bytes_per_token_per_layer
        if self.mla is None:
            layer = layer // self.num_kv_heads * math.ceil(self.num_kv_heads / tp)
        return math.ceil(self.num_layers / pp) * layer

    def _mlp_params(self, width: int) -> int:
        return self.num_mlp_matrices * self.hidden_size * width


class LinkShape(_Described):
    """One direction of a link.

    Attributes:
        bytes_per_s: what large copies reach.
        latency_s: from the end of a copy's dispatch to its first byte, and what a collective of
            no bytes takes.
        dispatch_s: what the dispatching thread spends on a copy.
        min_copy_s: what a copy keeps the link busy, however small it is.
    """

    bytes_per_s: float = Field(gt=0)
    latency_s: float = Field(default=0.0, ge=0)
    dispatch_s: float = Field(default=0.0, ge=0)
    min_copy_s: float = Field(default=0.0, ge=0)


class Efficiency(_Described):
    """What of a data sheet's figures real kernels reach.

    Attributes:
        matmul: share of the FLOP/s that matrix products with many rows reach.
        attention: share of the FLOP/s that attention over prompts reaches.
        bandwidth: share of the bytes/s that matrix products with few rows reach.
        kv_bandwidth: share of the bytes/s that attention of decodes reaches.
        source: where these come from.
    """

    matmul: float = Field(gt=0, le=1)
    attention: float = Field(gt=0, le=1)
    bandwidth: float = Field(gt=0, le=1)
    kv_bandwidth: float = Field(gt=0, le=1)
    source: str = Field(min_length=1)


class Price(_Described):
    """What a device costs.

    Attributes:
        usd_per_hour: rent for an hour.
        source: who asks that, when.
    """

    usd_per_hour: float = Field(gt=0)
    source: str = Field(min_length=1)


class DeviceShape(_Described):
    """One accelerator, or the processors of one machine.

    Attributes:
        name: short name.
        description: the product's name.
        memory_bytes: its memory.
        flops: dense FLOP/s by bytes of an operand's entry: "4" for fp32, "2" for bf16, "1" for fp8.
        bandwidth_bytes_per_s: of its memory.
        launch_s: what a kernel costs however little it does.
        efficiency: what of these figures kernels reach.
        source: where the figures come from.
        links: "pcie" to its host; "nvlink" to its peers, where it has it; "disk" beyond the host.
        price: what it costs, where a figure is known.
    """

    name: str
    description: str
    memory_bytes: int = Field(gt=0)
    flops: dict[int, float]
    bandwidth_bytes_per_s: float = Field(gt=0)
    launch_s: float = Field(ge=0)
    efficiency: Efficiency
    source: str = Field(min_length=1)
    links: dict[str, LinkShape] = Field(default_factory=dict)
    price: Price | None = None

    @property
    def price_per_hour(self) -> float | None:
        """US dollars for an hour, if known."""
        return self.price.usd_per_hour if self.price else None

    @property
    def peer_link(self) -> LinkShape:
        """The link to other devices of its kind: the fastest it has."""
        return self.link("nvlink" if "nvlink" in self.links else "pcie")

    def link(self, name: str) -> LinkShape:
        """Return a link.

        Raises:
            ConfigError: the device is described without it.
        """
        if name not in self.links:
            raise ConfigError(
                f"device {self.name} has no link {name!r}",
                why=f"its description has {', '.join(self.links) or 'none'}",
                fix=f"Add [links.{name}] to a copy of its file, and name that file",
            )
        return self.links[name]

    def form_of(self, model: ModelShape) -> ModelShape:
        """Return the model with weights and KV in a form that this device computes with.

        That is the model's own, or else the next wider one.

        Raises:
            ConfigError: there is none.
        """
        wide_enough = [width for width in sorted(self.flops) if width >= model.dtype_bytes]
        if not wide_enough:
            raise ConfigError(
                f"device {self.name} does not compute with {model.dtype_bytes} bytes",
                why=f"{model.name} needs that, and the device has {sorted(self.flops)}",
                fix="Add its FLOP/s to [flops] in a copy of its file, and name that file",
            )
        return model.model_copy(update={"dtype_bytes": wide_enough[0]})


def load_model(name_or_path: str) -> ModelShape:
    """Read a model's description by its short name, or from a file.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    return _load("models", "model", name_or_path, ModelShape)


def load_device(name_or_path: str) -> DeviceShape:
    """Read a device's description by its short name, or from a file.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    return _load("devices", "device", name_or_path, DeviceShape)


def known_models() -> list[str]:
    """Return the short names of all models."""
    return _names("models")


def known_devices() -> list[str]:
    """Return the short names of all devices."""
    return _names("devices")


def num_kv_blocks(
    model: ModelShape,
    device: DeviceShape,
    *,
    tp: int = 1,
    pp: int = 1,
    block_size: int = 16,
    kv_memory_bytes: int | None = None,
    memory_utilization: float = 0.9,
) -> int:
    """Return how many KV blocks fit, each spread over the tp * pp devices of an instance.

    Args:
        model: what is served.
        device: on what.
        tp: devices that share each layer.
        pp: stages that share the layers.
        block_size: tokens in a block.
        kv_memory_bytes: KV memory of one device; without it, what the weights leave.
        memory_utilization: share of a device's memory that weights and KV may take.

    Raises:
        ConfigError: not one block fits.
    """
    model = device.form_of(model)
    weights = math.ceil(model.num_params * model.dtype_bytes / (tp * pp))
    usable = int(device.memory_bytes * memory_utilization)
    if kv_memory_bytes is None:
        kv_memory_bytes = usable - weights
    num_blocks = kv_memory_bytes // (block_size * model.kv_bytes_per_token_per_gpu(tp, pp))
    if num_blocks < 1:
        raise ConfigError(
            f"{model.name} leaves no KV memory on {tp * pp} x {device.name}",
            why=f"its weights take {format_bytes(weights)} of each, which has "
            f"{format_bytes(usable)} for weights and KV",
            fix="Use more devices with --tp or --pp, or larger ones",
        )
    return num_blocks


_Shape = TypeVar("_Shape", ModelShape, DeviceShape)


def _load(folder: str, kind: str, name_or_path: str, shape: type[_Shape]) -> _Shape:
    file: Path | Traversable
    names = _names(folder)
    if name_or_path in names:
        file = _folder(folder) / (name_or_path + _SUFFIX)
    else:
        file = Path(name_or_path).expanduser()
        if not file.is_file():
            raise ConfigError(
                f"there is no {kind} {name_or_path!r}",
                why=f"it is neither a file nor one of {', '.join(names)}",
                fix=f"Name one of these, or describe yours in a {_SUFFIX[1:].upper()} file",
            )
    try:
        return shape.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the {kind} file {file} cannot be read", why=str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{file} does not describe a {kind}",
            why=f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}",
            fix=f"Compare it with the files of evenflow/simulation/{folder}",
        ) from error


def _folder(name: str) -> Traversable:
    return files("evenflow.simulation") / name


def _names(folder: str) -> list[str]:
    entries = (entry.name for entry in _folder(folder).iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in entries if name.endswith(_SUFFIX))
