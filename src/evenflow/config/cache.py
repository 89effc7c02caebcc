"""The KV cache: how much memory, cut how, and what stays for reuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from evenflow.config.area import Area

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_AMOUNT = re.compile(
    r"(?P<number>\d+(\.\d+)?|\.\d+)\s*(?P<unit>((?P<prefix>[KMGT])(?P<binary>i)?)?B?)", re.I
)


class CacheConfig(Area):
    """Size, layout and reuse of the KV cache."""

    table: ClassVar[str] = "cache"

    kv_cache_memory: str = Field(
        default="0.3",
        json_schema_extra={"limits": "bytes (such as 2GiB) or a ratio above 0 and up to 1.0"},
    )
    """Memory for the KV cache: bytes (2GiB, 500MB, 1073741824) or a ratio of the memory that is
    free at start (0.3)."""

    block_size: int = Field(default=16, ge=1, le=1024)
    """Tokens in a KV block."""

    num_blocks_override: int | None = Field(default=None, ge=1)
    """KV blocks to use whatever --kv-cache-memory says, for tests and experiments; none means as
    many as fit."""

    kv_cache_dtype: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Type of keys and values: bf16 takes half the memory of fp32, int8 about half of bf16, with a
    scale for each token and head. Both round, and need the native kernels on a CPU; on a GPU there
    is no int8. auto is, on a CPU, bf16 with --linear w4a8 or w8a8 and fp32 with exact; on a GPU,
    the type of the activations."""

    kv_layout: Literal["block_first", "layer_first"] = "block_first"
    """Order of KV memory: block_first makes a block one contiguous range over all layers,
    layer_first keeps a separate tensor for each layer."""

    initial_group_blocks: int = Field(default=60, ge=1)
    """Blocks set aside in one contiguous run for a request that starts while memory is
    plentiful."""

    enable_prefix_caching: bool = True
    """Keep the KV of full blocks after their request ends, and reuse it for equal prefixes."""

    prefix_salt_per_tenant: bool = False
    """Never share prefix blocks between tenants, so that timing tells no tenant what another
    one sent."""

    kv_host_memory: str = Field(
        default="0.1",
        json_schema_extra={"limits": "bytes (such as 2GiB) or a ratio above 0 and up to 1.0, or 0"},
    )
    """Memory of the host for copies of KV: of requests that lost their place and of sessions
    between turns. Bytes (4GiB) or a ratio of the memory that is free at start (0.1); 0 for none,
    and then what leaves the device is computed again."""

    tenant_host_share: float = Field(default=1.0, gt=0, le=1)
    """Share of --kv-host-memory up to which one tenant's copies are as good as any; what it has
    beyond that is given up first."""

    kv_disk_path: Path | None = None
    """Folder for copies of KV that the host's memory cannot hold. They outlive a restart, and
    equal prefixes find them again. None for no such copies."""

    kv_disk_size: str = Field(default="8GiB", json_schema_extra={"limits": "bytes (such as 2GiB)"})
    """Most bytes that these copies take on disk."""

    keep_host_copies: bool = True
    """Keep a copy on the host when its blocks return to the device, so that they need not be
    written again when they leave the next time."""

    swap_by_group: bool = True
    """Move runs of neighbouring blocks between device and host as one copy; otherwise block by
    block, which is there to be measured against."""

    @field_validator("kv_cache_memory", "kv_host_memory", "kv_disk_size", mode="before")
    @classmethod
    def _accept_numbers(cls, value: object) -> object:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if is_number else value

    @field_validator("kv_cache_memory")
    @classmethod
    def _check_amount(cls, value: str) -> str:
        _parse_amount(value)
        return value

    @field_validator("kv_host_memory")
    @classmethod
    def _check_optional_amount(cls, value: str) -> str:
        if value != "0":
            _parse_amount(value)
        return value

    @field_validator("kv_disk_size")
    @classmethod
    def _check_bytes(cls, value: str) -> str:
        if isinstance(_parse_amount(value), float):
            raise ValueError("a ratio, and nothing says of what")
        return value

    @field_validator("kv_disk_path")
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    def kv_host_bytes(self, free_bytes: int) -> int:
        """Return the bytes that `kv_host_memory` asks for when `free_bytes` are free."""
        if self.kv_host_memory == "0":
            return 0
        amount = _parse_amount(self.kv_host_memory)
        return int(amount * free_bytes) if isinstance(amount, float) else amount

    @property
    def kv_disk_bytes(self) -> int:
        """The bytes that `kv_disk_size` allows."""
        return int(_parse_amount(self.kv_disk_size))

    def kv_cache_bytes(self, free_bytes: int) -> int:
        """Return the bytes that `kv_cache_memory` asks for when `free_bytes` are free."""
        amount = _parse_amount(self.kv_cache_memory)
        return int(amount * free_bytes) if isinstance(amount, float) else amount


def _parse_amount(text: str) -> int | float:
    """Read a positive number of bytes as an int, or a ratio in (0, 1] as a float.

    Without a unit, a number with a decimal point is a ratio and a whole number is bytes.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError("neither bytes nor a ratio")
    number = match["number"]
    if "." in number and not match["unit"]:
        if not 0 < float(number) <= 1:
            raise ValueError("the ratio is out of range")
        return float(number)
    base = 1024 if match["binary"] else 1000
    num_bytes = int(float(number) * base ** _POWERS[(match["prefix"] or "").upper()])
    if num_bytes < 1:
        raise ValueError("less than one byte")
    return num_bytes
