"""What a given amount of KV memory holds, said before anything is started.

Knows: bytes, blocks, tokens.
Does not know: the model; how the bytes are configured or found free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evenflow.core.errors import KVMemoryError

_EXAMPLE_LENGTHS = (1024, 256)
_MIB = 2**20


@dataclass(slots=True, frozen=True)
class KVPlan:
    """KV memory cut into blocks.

    Attributes:
        num_blocks: whole blocks that fit.
        block_size: tokens per block.
        bytes_per_block: bytes of one block over all layers.
        max_model_len: longest request in tokens.
    """

    num_blocks: int
    block_size: int
    bytes_per_block: int
    max_model_len: int

    @property
    def num_tokens(self) -> int:
        """Tokens that fit."""
        return self.num_blocks * self.block_size

    @property
    def num_bytes(self) -> int:
        """Bytes taken."""
        return self.num_blocks * self.bytes_per_block

    def num_requests_of(self, num_tokens: int) -> int:
        """Return how many requests of `num_tokens` tokens fit at once, sharing nothing."""
        return self.num_blocks // _ceil_div(num_tokens, self.block_size)

    def description(self) -> str:
        """Return the prediction as one line for the log."""
        longest = f"{self.num_requests_of(self.max_model_len):,} requests of {self.max_model_len:,}"
        shorter = [n for n in _EXAMPLE_LENGTHS if n < self.max_model_len]
        others = [f"{self.num_requests_of(length):,} of {length:,}" for length in shorter]
        fits = _either([f"{longest} tokens", *others])
        return (
            f"{format_bytes(self.num_bytes)} in {self.num_blocks:,} blocks of {self.block_size} "
            f"hold {self.num_tokens:,} tokens: enough at once for {fits}"
        )


def plan_kv_memory(
    num_bytes: int,
    *,
    bytes_per_block: int,
    block_size: int,
    max_model_len: int,
    free_bytes: int | None = None,
    is_count: bool = False,
) -> KVPlan:
    """Cut `num_bytes` of KV memory into blocks.

    Args:
        num_bytes: what was asked for.
        bytes_per_block: bytes of one block over all layers.
        block_size: tokens per block.
        max_model_len: longest request in tokens.
        free_bytes: bytes that can be had, if that is known.
        is_count: whether blocks were asked for, and not bytes.

    Raises:
        KVMemoryError: one request of the longest length does not fit, or more is asked for than
            is free.
    """
    plan = KVPlan(num_bytes // bytes_per_block, block_size, bytes_per_block, max_model_len)
    needed_bytes = _ceil_div(max_model_len, block_size) * bytes_per_block
    if plan.num_bytes < needed_bytes:
        raise KVMemoryError(
            f"The KV memory cannot hold one request of {max_model_len:,} tokens",
            why=f"that takes {format_bytes(needed_bytes)} ({needed_bytes} bytes), and "
            f"{format_bytes(num_bytes)} hold {plan.num_tokens:,} tokens",
            fix=_remedy(plan, needed_bytes, free_bytes, is_count=is_count),
        )
    if free_bytes is not None and plan.num_bytes > free_bytes:
        raise KVMemoryError(
            f"The KV memory of {format_bytes(plan.num_bytes)} is not to be had",
            why=f"{format_bytes(free_bytes)} ({free_bytes} bytes) are free",
            fix=f"Set --kv-cache-memory to at most {max(0, free_bytes) // _MIB}MiB",
        )
    return plan


def format_bytes(num_bytes: int) -> str:
    """Return a size for people, such as 1.5 GiB."""
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{round(size, 2):g} {unit}"
        size /= 1024
    return f"{round(size, 2):g} TiB"


def _remedy(plan: KVPlan, needed_bytes: int, free_bytes: int | None, *, is_count: bool) -> str:
    """Say which settings would do."""
    remedies = []
    if is_count:
        num_blocks = needed_bytes // plan.bytes_per_block
        remedies.append(f"--num-blocks-override to at least {num_blocks}")
    elif free_bytes is None or needed_bytes <= free_bytes:
        remedies.append(f"--kv-cache-memory to at least {_ceil_div(needed_bytes, _MIB)}MiB")
    if plan.num_tokens:
        remedies.append(f"--max-model-len to at most {plan.num_tokens}")
    if not remedies:
        return f"Free at least {format_bytes(needed_bytes)} of memory or choose a smaller model"
    return f"Set {_either(remedies)}"


def _either(choices: Sequence[str]) -> str:
    """Return the choices as a phrase: `a, b or c`."""
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
