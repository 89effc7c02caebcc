"""Copies of KV blocks between a GPU and pinned memory of its host."""

from __future__ import annotations

import torch

from evenflow.core.clock import MonotonicClock
from evenflow.execution.torch.cuda_transfers import CudaTransfers
from evenflow.memory.extents import Extent
from evenflow.memory.transfers import Tier
from gpu_model import make_store

_NUM_BLOCKS = 256  # 512 MiB of Llama-3-8B's KV
_GROUP = 32
_NUM_ROUNDS = 5


def copy_rates() -> dict[str, float]:
    """Return GB/s by direction and way, and print them.

    `raw`: one copy of all. The others move the same bytes in blocks as the engine does: as runs of
    32 blocks (`groups`) or one by one (`blocks`), each contiguous over all layers (`block_first`)
    or apart for each (`layer_first`).
    """
    rates = {}
    for layout in ("block_first", "layer_first"):
        device = make_store(_NUM_BLOCKS, layout)
        host = make_store(_NUM_BLOCKS, layout, "cpu", pinned=True)
        device.data.normal_()
        if layout == "block_first":
            rates["raw_out"] = _rate(device.data.nbytes, host.data, device.data)
            rates["raw_in"] = _rate(device.data.nbytes, device.data, host.data)
        transfers = CudaTransfers(device, host, clock=MonotonicClock())
        for name, length in (("groups", _GROUP), ("blocks", 1)):
            runs = [Extent(at, length) for at in range(0, _NUM_BLOCKS, length)]
            copies = list(zip(runs, runs, strict=True))
            for direction, link in (
                ("out", (Tier.DEVICE, Tier.HOST)),
                ("in", (Tier.HOST, Tier.DEVICE)),
            ):
                took = []
                for _ in range(_NUM_ROUNDS):
                    transfers.wait([transfers.submit(*link, copies)])
                    took += [outcome.seconds for outcome in transfers.poll()]
                rates[f"{layout}_{name}_{direction}"] = device.data.nbytes / min(took) / 1e9
        transfers.close()
    for name, rate in rates.items():
        print(f"copy {name:28} {rate:6.1f} GB/s", flush=True)
    return rates


def _rate(num_bytes: int, target: torch.Tensor, source: torch.Tensor) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    took_ms = []
    for _ in range(_NUM_ROUNDS):
        began.record()
        target.copy_(source, non_blocking=True)
        ended.record()
        ended.synchronize()
        took_ms.append(began.elapsed_time(ended))
    return num_bytes / min(took_ms) / 1e6
