"""Tiers below the device, with links that take a round time for each block."""

from __future__ import annotations

from evenflow.core.clock import VirtualClock
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.residency import Residency
from evenflow.memory.transfers import Tier
from evenflow.simulation.links import SimulatedTransfers
from evenflow.simulation.shapes import LinkShape

BYTES_PER_BLOCK = 1024
HOST_BLOCK_S = 0.125
DISK_BLOCK_S = 0.5

_HOST_LINK = LinkShape(bytes_per_s=BYTES_PER_BLOCK / HOST_BLOCK_S)
_DISK_LINK = LinkShape(bytes_per_s=BYTES_PER_BLOCK / DISK_BLOCK_S)
_LINKS = {
    (Tier.DEVICE, Tier.HOST): _HOST_LINK,
    (Tier.HOST, Tier.DEVICE): _HOST_LINK,
    (Tier.HOST, Tier.DISK): _DISK_LINK,
    (Tier.DISK, Tier.DEVICE): _DISK_LINK,
}


def slow_tiers(
    clock: VirtualClock, num_host_blocks: int = 64, num_disk_blocks: int = 0
) -> Residency:
    """Return a host and, if it has any blocks, a disk; nothing lies on them."""
    transfers = SimulatedTransfers(clock, _LINKS, bytes_per_block=BYTES_PER_BLOCK)
    host = LowerTier(Tier.HOST, num_host_blocks)
    disk = LowerTier(Tier.DISK, num_disk_blocks) if num_disk_blocks else None
    return Residency(transfers, host, disk)
