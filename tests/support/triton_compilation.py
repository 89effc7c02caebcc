"""Compiles for a GPU that is not there all kernels that a forward pass and a draw would launch.

Run as a script with a compute capability, such as 90, in a process that does not interpret. A
launch compiles and ends there; that a kernel computes the right thing is for other tests.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from evenflow.execution.kernels.triton.attention import TritonAttention
from evenflow.execution.kernels.triton.sampling import Draws, draw
from evenflow.execution.kernels.triton.tiles import choose_tiles
from evenflow.execution.kernels.triton.triton_ops import TritonOps
from support.attention_scenes import Case, build


class AbsentGpu:
    """What Triton asks a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(capability: int) -> None:
    """Compile, and print the name of each kernel once."""
    compiled: list[str] = []

    def compile_only(kernel: Any, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            kernel.run(*arguments, grid=grid, warmup=True, **options)
            compiled.append(kernel.__name__)

        return launch

    driver.set_active(AbsentGpu(capability))
    JITFunction.__getitem__ = compile_only
    dtype = torch.bfloat16
    case = Case(((40, 20), (50, 1)), 1, 3, 96, 16, dtype=dtype, activations=dtype)
    for num_workers in (1, 64):
        scene = build(case)
        tiles = choose_tiles(96, dtype, divmod(capability, 10))
        attention = TritonAttention(scene.store, tiles)
        attention._num_processors = num_workers
        scene.attend(attention)
    ops = TritonOps()
    x, weight = torch.randn(4, 192).to(dtype), torch.ones(192)
    ops.rms_norm(x, weight, 1e-5)
    ops.add_rms_norm(x, x.float(), weight, 1e-5)
    for activation in ("silu", "gelu_tanh"):
        ops.gated(x, activation)
    draw(torch.randn(2, 1000), Draws(torch.ones((5, 2), dtype=torch.float64)))
    sys.stdout.write(" ".join(dict.fromkeys(compiled)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
