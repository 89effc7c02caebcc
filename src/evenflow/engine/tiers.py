"""Builds the tiers below the device: the host's memory, and a disk."""

from __future__ import annotations

import logging
from importlib.metadata import version

from evenflow.config import EvenflowConfig
from evenflow.core.clock import Clock
from evenflow.core.errors import ConfigError
from evenflow.execution.disk_blocks import DiskBlocks
from evenflow.execution.torch.cuda_transfers import CudaTransfers
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.transfers import CpuTransfers
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.residency import Residency
from evenflow.memory.sizing import format_bytes
from evenflow.memory.transfers import Tier

logger = logging.getLogger(__name__)


def build_residency(
    config: EvenflowConfig, device: KVStore, *, free_bytes: int, model: str, clock: Clock
) -> Residency | None:
    """Build what the configuration wants below the device; None for nothing.

    Args:
        config: the settings.
        device: the KV tensors; if they are on a GPU, the host's are pinned.
        free_bytes: memory of the host that is free for KV.
        model: names the weights and the form they are multiplied in; nothing else has that name.
        clock: times the transfers.

    Raises:
        ConfigError: there is a disk without a host, or it is smaller than a block.
        KVDiskError: the folder for the disk cannot be used.
    """
    cache = config.cache
    bytes_per_block = device.piece_bytes * device.num_pieces
    num_host_blocks = cache.kv_host_bytes(free_bytes) // bytes_per_block
    if num_host_blocks == 0:
        if cache.kv_disk_path is not None:
            raise ConfigError(
                "--kv-disk-path needs memory on the host",
                why="what goes to disk goes there from the host",
                fix="Set --kv-host-memory to 1GiB or more, or leave out --kv-disk-path",
            )
        return None
    host = KVStore(
        num_host_blocks,
        device.num_layers,
        device.num_kv_heads,
        device.head_dim,
        device.block_size,
        device.layout,
        device.data.dtype,
        pinned=device.data.is_cuda,
    )
    tiers = [LowerTier(Tier.HOST, num_host_blocks, tenant_share=cache.tenant_host_share)]
    logger.info(
        "host memory for kv: %s in %d blocks",
        format_bytes(num_host_blocks * bytes_per_block),
        num_host_blocks,
    )
    disk = None
    if cache.kv_disk_path is not None:
        disk = DiskBlocks.open(
            cache.kv_disk_path,
            num_blocks=_num_disk_blocks(cache.kv_disk_bytes, bytes_per_block),
            bytes_per_block=bytes_per_block,
            fingerprint=_fingerprint(config, device, model),
        )
        tiers.append(LowerTier(Tier.DISK, disk.num_blocks, journal=disk))
    transfers = CudaTransfers if device.data.is_cuda else CpuTransfers
    return Residency(
        transfers(device, host, disk, clock=clock),
        *tiers,
        by_group=cache.swap_by_group,
        keep_copies=cache.keep_host_copies,
    )


def _num_disk_blocks(num_bytes: int, bytes_per_block: int) -> int:
    if num_bytes < bytes_per_block:
        raise ConfigError(
            f"--kv-disk-size is {format_bytes(num_bytes)}, which holds no KV block",
            why=f"a block of this model takes {format_bytes(bytes_per_block)}",
            fix="Make it larger, or leave out --kv-disk-path",
        )
    return num_bytes // bytes_per_block


def _fingerprint(config: EvenflowConfig, device: KVStore, model: str) -> str:
    """Return a name for whatever the bytes of a block depend on."""
    return (
        f"evenflow {version('evenflow')}; {model}; {device.data.dtype}; block {device.block_size}; "
        f"attention {config.execution.attention_backend}"
    )
