"""What it takes to bring the parts of a tensor-parallel layer together."""

from __future__ import annotations

from typing import Protocol

from evenflow.simulation.shapes import LinkShape


class CollectiveCosts(Protocol):
    """Says how long collectives take among the devices of one instance."""

    @property
    def description(self) -> str:
        """What it is and where its figures come from, on one line."""
        ...

    def all_reduce_s(self, num_bytes: int, num_gpus: int) -> float:
        """Return the seconds to sum a tensor of `num_bytes` over the devices."""
        ...


class ClosedFormCollectives:
    """A ring: every device sends and receives 2 (n - 1) / n of the tensor.

    Args:
        link: between the devices; its latency is paid once, its bandwidth is one direction's.
    """

    def __init__(self, link: LinkShape) -> None:
        self._link = link

    @property
    def description(self) -> str:
        """What it is and where its figures come from."""
        return "ring all-reduce over the device's link"

    def all_reduce_s(self, num_bytes: int, num_gpus: int) -> float:
        """Return the seconds to sum a tensor of `num_bytes` over the devices."""
        if num_gpus == 1:
            return 0.0
        share = 2 * (num_gpus - 1) / num_gpus
        return self._link.latency_s + share * num_bytes / self._link.bytes_per_s
