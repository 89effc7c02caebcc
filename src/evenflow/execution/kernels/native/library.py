"""Finds the compiled kernels, or compiles them, and picks those that suit the processor.

Knows: shared libraries, the folder they are kept in.
Does not know: what kernels compute.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

from filelock import FileLock

from evenflow.config.paths import PathsConfig
from evenflow.core.errors import ConfigError
from evenflow.execution.kernels.attention_job import KV_TYPES
from evenflow.execution.kernels.cpu_kernels import CpuKernels, QuantisedKernels
from evenflow.execution.kernels.native import build

logger = logging.getLogger(__name__)

ISAS = ("portable", "avx2", "avx512")
"""The instruction sets there are kernels for; a processor that has one has those before it."""

_GET_COMPILER = (
    "install a C++17 compiler (apt install g++) or name one in CXX, or use the portable kernels"
)
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64)


class NativeKernel:
    """A kernel of the library.

    Args:
        address: where its machine code is.
    """

    def __init__(self, address: int) -> None:
        self.address = address
        self._function = _FUNCTION(address)

    def __call__(self, arguments: int) -> None:
        """Run it on the calling thread; ctypes releases the interpreter lock."""
        self._function(arguments)


def native_kernels(isa: str | None = None, cache: Path | None = None) -> CpuKernels | None:
    """Return the C++ kernels, or None after one line in the log that says why not.

    Args:
        isa: one of `ISAS`; the best that the processor has by default.
        cache: folder in which a library compiled on first use is kept.
    """
    try:
        return load_native_kernels(isa, cache)
    except ConfigError as error:
        logger.warning("%s The portable kernels serve instead.", error)
        return None


def load_native_kernels(isa: str | None = None, cache: Path | None = None) -> CpuKernels:
    """Return the C++ kernels (see `native_kernels`).

    Raises:
        ConfigError: they cannot be had, or not for this instruction set.
    """
    library = _library(cache or PathsConfig().cache / "native")
    supported = ISAS[: library.best_isa() + 1]
    isa = isa or supported[-1]
    if isa not in supported:
        raise ConfigError(
            f"There are no native kernels for {isa!r}",
            why=f"this processor can run those for {', '.join(supported)}",
            fix="name one of these, or none",
        )
    logger.info("native kernels for %s", isa)

    def kernel(name: str) -> NativeKernel:
        function = getattr(library, f"{name}_kernel_{isa}")
        return NativeKernel(ctypes.cast(function, ctypes.c_void_p).value or 0)

    return CpuKernels(
        norm=kernel("norm"),
        add_norm=kernel("add_norm"),
        gate=kernel("gate"),
        gather=kernel("gather"),
        rotate_store=kernel("rotate_store"),
        attention=kernel("attention"),
        kv_types=KV_TYPES,
        quantised=QuantisedKernels(
            pack=kernel("pack"), linear=kernel("linear"), embed=kernel("embed")
        ),
        replay=kernel("replay"),
    )


def _library(cache: Path) -> ctypes.CDLL:
    """Return the library of the package, else that of the cache, compiled if need be."""
    name = build.library_name()
    packaged = Path(build.__file__).with_name(name)
    kept = cache / name
    try:
        if packaged.exists():
            return ctypes.CDLL(str(packaged))
        if not build.is_whole(kept):
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{kept}.lock"):
                if not build.is_whole(kept):  # nobody else has compiled it meanwhile
                    logger.info("compiling the native kernels into %s, once", kept)
                    build.compile_library(kept)
        return ctypes.CDLL(str(kept))
    except build.CompileError as error:
        raise ConfigError(
            "The native kernels cannot be compiled", why=str(error), fix=_GET_COMPILER
        ) from error
    except OSError as error:
        raise ConfigError(
            "The native kernels cannot be loaded",
            why=str(error),
            fix=f"make {cache} a folder that can be written to and run from",
        ) from error
