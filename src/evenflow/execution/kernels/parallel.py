"""Runs kernels on the very threads that torch computes with, into memory that is used again.

Two OpenMP runtimes in one process fight for the cores: each keeps its idle threads spinning while
the other works. Kernels therefore run through `GOMP_parallel` of the runtime torch has loaded;
where there is none that we know, through a plain thread pool.

A kernel is a compiled function `void(int64 arguments)`. All threads run it with the same address,
that of 8-byte words of which the first two are counters: threads take task numbers from word 0
until they run out, and their own number from word 1. So the work balances itself, and no thread
needs to know how many there are.

Knows: threads, addresses, memory.
Does not know: what kernels compute.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol

import torch

from evenflow.execution.torch.huge_pages import Pool

_LARGE = 1 << 14  # floats; below, the C library has memory at hand

NEXT_TASK = 0
NEXT_THREAD = 1
FIRST_ARGUMENT = 2


class Kernel(Protocol):
    """A native function `void(int64 arguments)`."""

    @property
    def address(self) -> int:
        """Where its machine code is."""
        ...

    def __call__(self, arguments: int) -> None:
        """Run it on the calling thread; the interpreter lock is released meanwhile."""
        ...


@dataclass(slots=True)
class Recording:
    """Kernels in the order in which they ran.

    Attributes:
        calls: the address of each kernel, and its words.
        kept: objects that the words point into.
    """

    calls: list[tuple[int, bytes]] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)


class ThreadTeam:
    """As many threads as `torch.get_num_threads()` says at each call, and memory for results.

    To be used from one thread at a time, as an engine does.
    """

    def __init__(self) -> None:
        self._parallel = _openmp_parallel()
        self._pool: ThreadPoolExecutor | None = None
        self._memory = Pool()
        self._recording: Recording | None = None

    def empty(self, *shape: int) -> torch.Tensor:
        """Return an uninitialised fp32 tensor for what a kernel computes."""
        if self._recording is None and prod(shape) >= _LARGE:
            return self._memory.take(shape, torch.float32)
        return torch.empty(shape)

    def size(self, *, serial: bool = False) -> int:
        """Return how many threads `run` asks for."""
        if serial and self._recording is None:  # in a replay, the threads are awake already
            return 1
        return torch.get_num_threads()

    def run(
        self,
        kernel: Kernel,
        arguments: Arguments,
        *,
        serial: bool = False,
        limit: int | None = None,
    ) -> None:
        """Run a kernel to its end.

        Args:
            kernel: what to run.
            arguments: its arguments, packed; the counters are reset.
            serial: use the calling thread only; worth it below some 20 microseconds of work.
            limit: threads at most.
        """
        num_threads = self.size(serial=serial)
        if limit is not None:
            num_threads = min(num_threads, limit)
        address = arguments.reset()
        if self._recording is not None:
            self._recording.calls.append((kernel.address, arguments.words))
        if num_threads == 1:
            kernel(address)
        elif self._parallel is not None:
            self._parallel(kernel.address, address, num_threads, 0)
        else:
            self._run_in_pool(kernel, address, num_threads)

    @contextmanager
    def record(self) -> Iterator[Recording]:
        """Record what runs meanwhile."""
        self._recording = Recording()
        try:
            yield self._recording
        finally:
            self._recording = None

    def keep(self, *pointed_at: object) -> None:
        """Keep what the next words point into for as long as a recording that is under way."""
        if self._recording is not None:
            self._recording.kept += pointed_at

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

    @property
    def words(self) -> bytes:
        """A copy of all words, counters included."""
        return bytes(self._words)

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
