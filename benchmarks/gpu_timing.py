"""Times work on a GPU, and what the GPU can do at most."""

from __future__ import annotations

from collections.abc import Callable

import torch
from triton.testing import do_bench

_MATRIX = 8192
_COPY_BYTES = 2 << 30


def seconds(run: Callable[[], object], *, rep_ms: int = 200) -> float:
    """Return the median time of some work on the device, its caches cold each time."""
    return float(do_bench(run, warmup=50, rep=rep_ms, return_mode="median")) / 1e3


def ceilings() -> dict[str, float]:
    """Measure the highest rates that ordinary operations reach.

    Returns:
        tflops: of a matrix product in bf16.
        copy_tbs: bytes read and written by a copy on the device, TB/s.
    """
    a, b = (torch.randn(_MATRIX, _MATRIX, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product_s = seconds(lambda: a @ b)
    source = torch.randint(0, 255, (_COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source))
    return {
        "tflops": 2 * _MATRIX**3 / product_s / 1e12,
        "copy_tbs": 2 * _COPY_BYTES / copy_s / 1e12,
    }
