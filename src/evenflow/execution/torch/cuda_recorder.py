"""Records what is enqueued on a GPU as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from evenflow.execution.torch.decode_recordings import Replay

_NUM_WARM_UPS = 2


class CudaRecorder:
    """Records CUDA graphs, which share their memory: only one of them runs at a time.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        """Record a CUDA graph of what `run` enqueues, having compiled its kernels before."""
        for _ in range(_NUM_WARM_UPS):
            run()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = run()
        return graph.replay, out
