"""The kernels that CPU back ends are made of, and the sets of them there are.

Knows: which sets this machine can have.
Does not know: tensors, what kernels compute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from evenflow.execution.kernels.attention_job import KV_TYPES
from evenflow.execution.kernels.parallel import Kernel


class QuantisedKernels(NamedTuple):
    """Kernels that multiply by weights as a GGUF file stores them.

    Attributes:
        pack: stored rows into tiles.
        linear: rows times packed weights.
        embed: rows of packed weights, dequantised.
    """

    pack: Kernel
    linear: Kernel
    embed: Kernel


class CpuKernels(NamedTuple):
    """One set of kernels; each takes the argument words that its layout names (`jobs`).

    Attributes:
        norm: root-mean-square norm (NORM_LAYOUT).
        add_norm: the same of a sum that is kept (ADD_NORM_LAYOUT).
        gate: activation(gate) * up (GATE_LAYOUT).
        gather: rows of a table (GATHER_LAYOUT).
        rotate_store: rotary positions, and new keys and values into their slots
            (ROTATE_STORE_LAYOUT).
        attention: paged attention (ATTENTION_LAYOUT).
        kv_types: types of a KV cache that rotate_store and attention know.
        quantised: products with quantised weights; None where this set has none.
        replay: many kernels, one after the other (REPLAY_LAYOUT); None where this set has none.
    """

    norm: Kernel
    add_norm: Kernel
    gate: Kernel
    gather: Kernel
    rotate_store: Kernel
    attention: Kernel
    kv_types: tuple[str, ...] = KV_TYPES[:1]
    quantised: QuantisedKernels | None = None
    replay: Kernel | None = None


def cpu_kernels(
    choice: Literal["auto", "native", "portable"], cache: Path | None = None
) -> CpuKernels:
    """Return the set of kernels to use.

    Args:
        choice: "native" for those in C++, "portable" for those that numba compiles, "auto" for
            native where it can be had.
        cache: folder for a native library compiled on first use; the user's cache by default.

    Raises:
        ConfigError: "native" was asked for and cannot be had.
    """
    if choice == "portable":
        return portable_kernels()
    from evenflow.execution.kernels.native.library import load_native_kernels, native_kernels

    if choice == "native":
        return load_native_kernels(cache=cache)
    return native_kernels(cache=cache) or portable_kernels()


def portable_kernels() -> CpuKernels:
    """Return the kernels that numba compiles."""
    from evenflow.execution.kernels.portable import attention_kernels, row_kernels, store_kernels

    return CpuKernels(
        norm=row_kernels.norm_kernel,
        add_norm=row_kernels.add_norm_kernel,
        gate=row_kernels.gate_kernel,
        gather=row_kernels.gather_kernel,
        rotate_store=store_kernels.rotate_store_kernel,
        attention=attention_kernels.attention_kernel,
    )
