"""Recordings of forward passes, on machines without CUDA graphs too."""

from __future__ import annotations

from collections.abc import Callable

import torch

from evenflow.execution.torch.cuda_recorder import CudaRecorder
from evenflow.execution.torch.decode_recordings import Recorder, Replay


def record_on_cpu(run: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
    """Record as a CPU can: compute again, into the same tensor."""
    out = run()
    return lambda: out.copy_(run()), out


def recorder_for(device: torch.device) -> Recorder:
    """Return what records on a device."""
    return record_on_cpu if device.type == "cpu" else CudaRecorder(device)
