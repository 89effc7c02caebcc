"""The KV cache: how much memory, cut how, and what stays for reuse."""

from __future__ import annotations

import re
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

    @field_validator("kv_cache_memory", mode="before")
    @classmethod
    def _accept_numbers(cls, value: object) -> object:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if is_number else value

    @field_validator("kv_cache_memory")
    @classmethod
    def _check_amount(cls, value: str) -> str:
        _parse_amount(value)
        return value

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
