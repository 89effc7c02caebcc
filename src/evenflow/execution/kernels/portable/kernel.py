"""Kernels written in Python and compiled by numba, and where their machine code is kept.

Knows: numba.
Does not know: what kernels compute.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc

logger = logging.getLogger(__name__)

# No exceptions leave a kernel, so division need not check for zero.
device_function = njit(error_model="numpy")


class NumbaKernel:
    """A kernel, compiled (or loaded from numba's cache on disk) when first used.

    Args:
        body: what to compile, `void(int64 arguments)`; see the module's docstring.
    """

    def __init__(self, body: Callable[[int], None]) -> None:
        self._body = body

    @property
    def address(self) -> int:
        """Where its machine code is."""
        return self._compiled.address  # type: ignore[no-any-return]

    def __call__(self, arguments: int) -> None:
        """Run it on the calling thread."""
        self._compiled.ctypes(arguments)

    @cached_property
    def _compiled(self) -> Any:
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
