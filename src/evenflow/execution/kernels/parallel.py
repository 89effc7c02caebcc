"""Runs kernels on the very threads that torch computes with.

Two OpenMP runtimes in one process fight for the cores: each keeps its idle threads spinning while
the other works. Kernels therefore run through `GOMP_parallel` of the runtime torch has loaded;
where there is none that we know, through a plain thread pool.

A kernel is a compiled function `void(int64 arguments)`. All threads run it with the same address,
that of 8-byte words of which the first two are counters: threads take task numbers from word 0
until they run out, and their own number from word 1. So the work balances itself, and no thread
needs to know how many there are.

Knows: threads, addresses.
Does not know: what kernels compute.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numba import njit, types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc

logger = logging.getLogger(__name__)

NEXT_TASK = 0
NEXT_THREAD = 1
FIRST_ARGUMENT = 2

# No exceptions leave a kernel, so division need not check for zero.
device_function = njit(error_model="numpy")


class Kernel:
    """A kernel, compiled (or loaded from numba's cache on disk) when first used.

    Args:
        body: what to compile, `void(int64 arguments)`; see the module's docstring.
    """

    def __init__(self, body: Callable[[int], None]) -> None:
        self._body = body

    @cached_property
    def compiled(self) -> Any:
        """The native function: a numba `CFunc`."""
        logger.info("loading kernel %s; its very first use compiles it", self._body.__name__)
        signature = ((types.int64,), types.void)
        function = CFunc(self._body, signature, locals={}, options={"error_model": "numpy"})
        function._cache = _KernelCache(self._body)  # type: ignore[attr-defined, no-untyped-call]  # noqa: SLF001
        function.compile()
        return function


class _KernelCache(FunctionCache):
    """numba's cache on disk, keyed by all sources of this folder.

    On its own, numba looks at the file of the kernel only, and would go on using machine code made
    from yesterday's version of the modules that file imports.
    """

    def _index_key(self, *arguments: Any) -> tuple[Any, ...]:
        digest = hashlib.sha256()
        for source in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(source.read_bytes())
        return (*super()._index_key(*arguments), digest.hexdigest())  # type: ignore[no-untyped-call]


class ThreadTeam:
    """As many threads as `torch.get_num_threads()` says at each call.

    To be used from one thread at a time, as an engine does.
    """

    def __init__(self) -> None:
        self._parallel = _openmp_parallel()
        self._pool: ThreadPoolExecutor | None = None

    def run(self, kernel: Kernel, arguments: Arguments, *, serial: bool = False) -> None:
        """Run a kernel to its end.

        Args:
            kernel: what to run.
            arguments: its arguments, packed; the counters are reset.
            serial: use the calling thread only; worth it below some 20 microseconds of work.
        """
        num_threads = 1 if serial else torch.get_num_threads()
        address = arguments.reset()
        function = kernel.compiled
        if num_threads == 1:
            function.ctypes(address)
        elif self._parallel is not None:
            self._parallel(function.address, address, num_threads, 0)
        else:
            self._run_in_pool(function.ctypes, address, num_threads)

    def _run_in_pool(self, function: Callable[[int], None], address: int, num_threads: int) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(thread_name_prefix="evenflow-kernel")
        helpers = [self._pool.submit(function, address) for _ in range(num_threads - 1)]
        function(address)
        for helper in helpers:
            helper.result()


class Arguments:
    """The argument words of a kernel, behind the two counters.

    Args:
        layout: `struct` codes of the words, "q" for int64 and "d" for float64.
    """

    def __init__(self, layout: str) -> None:
        self._struct = struct.Struct("=" + layout)
        self._counters = struct.Struct("=qq")
        self._words = bytearray(8 * FIRST_ARGUMENT + self._struct.size)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._words))

    def pack(self, *values: float) -> Arguments:
        """Set the words."""
        self._struct.pack_into(self._words, 8 * FIRST_ARGUMENT, *values)
        return self

    def reset(self) -> int:
        """Zero the counters and return the address of the words."""
        self._counters.pack_into(self._words, 0, 0, 0)
        return self._address


def _openmp_parallel() -> Callable[[int, int, int, int], None] | None:
    """Return `GOMP_parallel` of the OpenMP runtime torch has loaded, or None."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    loaded = set(re.findall(r"(/\S*/lib[gi]?omp[^/\s]*\.so\S*)", maps.read_text()))
    torch_folder = str(Path(torch.__file__).parent)
    for path in sorted(loaded, key=lambda path: not path.startswith(torch_folder)):
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel"):
            function = library.GOMP_parallel
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            function.restype = None
            return function
    return None
