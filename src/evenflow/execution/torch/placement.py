"""Brings small tensors to a device and back without making the host wait.

    host     build ─▶ to_device ─▶ (launch kernels) ─▶ ReadBack ─▶ ... ─▶ wait
    device              └─ copy ─ kernels of the step ─ copy ─┘ event

From and to pinned memory, copies are ordered with the kernels around them. Torch's allocator keeps
a pinned buffer until the copy that reads or writes it is done.
"""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device, for what is enqueued from now on."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class ReadBack:
    """Copies of tensors on their way to the host, behind all that was enqueued before.

    Args:
        tensors: all on one device; they may be freed or changed by what is enqueued later.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors = tensors
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].device.type != "cpu":
            self._tensors = tuple(
                torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
                for t in tensors
            )
            self._arrived = torch.cuda.current_stream(tensors[0].device).record_event()

    def wait(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors on the host, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors
