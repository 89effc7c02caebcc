"""All Triton kernels compile for GPUs this machine need not have.

The interpreter forgives what the compiler does not: types that differ between branches, shapes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_triton_kernels_compile_for_a_gpu(capability: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    script = TESTS / "support" / "triton_compilation.py"
    run = subprocess.run(
        [sys.executable, script, capability], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert set(run.stdout.split()) == {
        "rotate_store_kernel",
        "prefill_kernel",
        "decode_kernel",
        "merge_kernel",
        "norm_kernel",
        "gate_kernel",
        "draw_kernel",
    }
