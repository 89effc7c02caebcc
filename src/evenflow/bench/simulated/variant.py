"""A simulated server: its model, devices, memory, limits and policy, and the rate of its load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from evenflow.bench.config import rate_for_json
from evenflow.config import CacheConfig
from evenflow.core.errors import ConfigError
from evenflow.execution.costs import CostModel, load_profile
from evenflow.memory.sizing import format_bytes
from evenflow.scheduling.switching import PreemptionMode, SwapTiming, SwitchOptions
from evenflow.simulation.instance import SimulationSettings
from evenflow.simulation.links import HostMemory, host_links
from evenflow.simulation.roofline import RooflineCosts
from evenflow.simulation.shapes import (
    DeviceShape,
    ModelShape,
    load_device,
    load_model,
    num_kv_blocks,
)
from evenflow.simulation.tables import load_table_costs

DEFAULT_MODEL = "llama-3-8b"
DEFAULT_DEVICE = "a100"

_PROFILE = "profile:"
_TABLES = "tables:"
_FLAGS = {
    "memory_utilization": "--gpu-memory-utilization",
    "num_blocks": "--num-blocks-override",
}
_SAYING_ENOUGH = ("policy", "model", "device")
"""Fields whose value tells in a label what it is of."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Variant:
    """One of the servers that a command compares.

    Attributes:
        model: name or file of its shape; None for `DEFAULT_MODEL`, or that of the profile.
        device: name or file of a device's shape; None for `DEFAULT_DEVICE`, or a profile's machine.
        costs: where step times come from: roofline, profile:NAME (or file), tables:FOLDER.
        policy: name of the scheduling policy.
        request_rate: of the load; infinite for as recorded, else all at once.
        tp: devices that share each layer.
        pp: stages that the layers are divided into.
        kv_memory: for KV on each device, such as 40GiB; None for what the model leaves.
        memory_utilization: share of a device's memory that is used, without `kv_memory`.
        kv_host_memory: of the host for copies of each device's KV, such as 60GiB; None for none.
        preemption_mode: what becomes of the KV of requests that lose their place.
        swap_timing: when KV is copied.
        num_blocks: KV blocks, whatever the memory; None for as many as fit.
        block_size: tokens per block.
        max_num_seqs: most running requests.
        max_num_batched_tokens: token budget of a step.
        max_model_len: most tokens of prompt and answer together; None for what the model was made
            for, as far as that fits into KV memory.
        enable_prefix_caching: whether equal prefixes are found again.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str | None = None
    device: str | None = None
    costs: str = "roofline"
    policy: str = "fcfs"
    request_rate: float = math.inf
    tp: int = 1
    pp: int = 1
    kv_memory: str | None = None
    memory_utilization: float = 0.9
    kv_host_memory: str | None = None
    preemption_mode: PreemptionMode = "auto"
    swap_timing: SwapTiming = "auto"
    num_blocks: int | None = None
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int | None = None
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        """Check what other rooms do not check."""
        names = ("request_rate", "tp", "pp", "block_size", "max_num_seqs", "num_blocks")
        for name in (*names, "max_model_len"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{_flag(name)} must be positive", why=f"it is {value}")
        if self.max_num_batched_tokens < 2:
            raise ConfigError("--max-num-batched-tokens must be at least 2")
        if not 0 < self.memory_utilization <= 1:
            raise ConfigError(
                "--gpu-memory-utilization must be above 0 and at most 1",
                why=f"it is {self.memory_utilization}",
            )
        if self._is_profiled and None in (self.model, self.device) and self.num_blocks is None:
            raise ConfigError(
                "a profile does not say how much memory there is",
                why="it tells how long steps take",
                fix="Give --num-blocks-override, or both --model and --device",
            )

    @property
    def model_name(self) -> str:
        """What is served."""
        if self.model is None and self._is_profiled:
            return load_profile(self.costs.removeprefix(_PROFILE)).model
        return self.model or DEFAULT_MODEL

    @property
    def device_name(self) -> str:
        """What it is served on."""
        if self.device is None and self._is_profiled:
            return load_profile(self.costs.removeprefix(_PROFILE)).machine
        return self.device or DEFAULT_DEVICE

    @property
    def num_devices(self) -> int:
        """Devices that it occupies."""
        return self.tp * self.pp

    def settings(self) -> SimulationSettings:
        """Return the engine to simulate.

        Raises:
            ConfigError: the model or the device is not known, or the model or the longest request
                does not fit.
        """
        num_blocks, longest = self.num_blocks, math.inf
        if num_blocks is None:
            model, device = self._shapes()
            longest = model.max_model_len
            num_blocks = num_kv_blocks(
                model,
                device,
                tp=self.tp,
                pp=self.pp,
                block_size=self.block_size,
                kv_memory_bytes=(
                    None if self.kv_memory is None else _bytes(self.kv_memory, "--kv-memory")
                ),
                memory_utilization=self.memory_utilization,
            )
        num_tokens = num_blocks * self.block_size
        if self.max_model_len is not None and self.max_model_len > num_tokens:
            raise ConfigError(
                f"the KV memory cannot hold one request of {self.max_model_len:,} tokens",
                why=f"it holds {num_tokens:,} tokens",
                fix=f"Use --max-model-len {num_tokens} or less, or more KV memory",
            )
        return SimulationSettings(
            num_blocks=num_blocks,
            policy=self.policy,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            block_size=self.block_size,
            max_model_len=self.max_model_len or int(min(longest, num_tokens)),
            enable_prefix_caching=self.enable_prefix_caching,
            host=self._host(),
            switching=SwitchOptions(mode=self.preemption_mode, timing=self.swap_timing),
        )

    def _host(self) -> HostMemory | None:
        if self.kv_host_memory is None:
            return None
        model, device = self._shapes()
        model = device.form_of(model)
        bytes_per_block = self.block_size * model.kv_bytes_per_token_per_gpu(self.tp, self.pp)
        num_blocks = _bytes(self.kv_host_memory, "--kv-host-memory") // bytes_per_block
        if num_blocks < 1:
            raise ConfigError(
                f"--kv-host-memory {self.kv_host_memory} holds no KV block",
                why=f"a block of {model.name} takes {format_bytes(bytes_per_block)}",
                fix="Give more, or leave it out",
            )
        return HostMemory(
            num_blocks=num_blocks, bytes_per_block=bytes_per_block, links=host_links(device)
        )

    def cost_model(self) -> CostModel:
        """Return how long steps take.

        Raises:
            ConfigError: there are no such costs.
        """
        return _cost_model(self.costs, self.model_name, self.device_name, self.tp, self.pp)

    def price_per_hour(self) -> float | None:
        """Return what its devices cost in US dollars, if that is known."""
        if self._is_profiled and self.device is None:
            return None
        price = load_device(self.device_name).price_per_hour
        return None if price is None else price * self.num_devices

    def sources(self) -> dict[str, str]:
        """Return where figures come from, by what they describe."""
        sources = {"step times": self.cost_model().description}
        if self._is_profiled and self.num_blocks is not None:
            return sources
        model, device = self._shapes()
        sources |= {"model": model.source, "device": device.source}
        if device.price is not None:
            sources["price"] = device.price.source
        return sources

    def for_json(self) -> dict[str, Any]:
        """Return all fields."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **values,
            "model": self.model_name,
            "device": self.device_name,
            "request_rate": rate_for_json(self.request_rate),
        }

    def _shapes(self) -> tuple[ModelShape, DeviceShape]:
        return load_model(self.model_name), load_device(self.device_name)

    @property
    def _is_profiled(self) -> bool:
        return self.costs.startswith(_PROFILE)


@lru_cache(maxsize=16)
def _cost_model(costs: str, model_name: str, device_name: str, tp: int, pp: int) -> CostModel:
    """Make a cost model once: tables take longer to read than many a simulation takes."""
    kind, _, place = costs.partition(":")
    if kind == "profile" and place:
        return load_profile(place).costs()
    model, device = load_model(model_name), load_device(device_name)
    if kind == "tables" and place:
        if pp > 1:
            raise ConfigError(
                "tables know no pipeline", fix="Leave out --pp, or use --costs roofline"
            )
        return load_table_costs(Path(place), model, device, tp=tp)
    if costs == "roofline":
        return RooflineCosts(model, device, tp=tp, pp=pp)
    raise ConfigError(
        f"there are no costs {costs!r}",
        fix="Name roofline, profile:NAME (or a file of `evenflow calibrate`), tables:FOLDER",
    )


def variants_of(base: Variant, sweep: Mapping[str, Sequence[Any]]) -> dict[str, Variant]:
    """Return every combination of the swept values, by a label that names those that differ.

    Args:
        base: has the values that are not swept.
        sweep: by field, its values.
    """
    swept = {name: values for name, values in sweep.items() if len(values) > 1}
    base = replace(base, **{name: values[0] for name, values in sweep.items()})
    variants = {}
    for combination in product(*swept.values()):
        chosen = dict(zip(swept, combination, strict=True))
        variants[_label(chosen) or base.policy] = replace(base, **chosen)
    return variants


def _label(chosen: Mapping[str, Any]) -> str:
    words = []
    for name, value in chosen.items():
        text = f"{value:g}" if isinstance(value, float) else str(value)
        words.append(text if name in _SAYING_ENOUGH else f"{sweep_name(name)}={text}")
    return " ".join(words)


def sweep_name(field: str) -> str:
    """Return what a field is called in a sweep and in labels."""
    return "rate" if field == "request_rate" else field.replace("_", "-")


def _bytes(amount: str, flag: str) -> int:
    """Read an amount of memory.

    Raises:
        ConfigError: it is none, or a share.
    """
    try:
        # A share of no free memory is nothing.
        num_bytes = CacheConfig(kv_cache_memory=amount).kv_cache_bytes(0)
    except ValueError:
        num_bytes = 0
    if not num_bytes:
        raise ConfigError(
            f"{flag} {amount!r} is no amount of memory", fix="Give bytes, such as 40GiB"
        )
    return num_bytes


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + name.replace("_", "-"))
