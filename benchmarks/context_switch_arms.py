"""The ways to switch contexts that `context_switch.py` compares, and the engines that use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from evenflow.engine.engine import Engine
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.residency import Residency
from evenflow.memory.transfers import Tier, TransferEngine
from evenflow.scheduling.policies.priority import Priority
from evenflow.scheduling.scheduler import Scheduler
from evenflow.scheduling.switching import SwitchOptions

BASELINE = "per_block"
BLOCK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to switch contexts.

    Attributes:
        switching: what is switched how, and when.
        has_host: whether there is host memory to swap to.
        is_block_first: a block is one range of memory over all layers, not one for each.
        by_group: runs of blocks are copied at once, not block by block.
        keeps_copies: what was loaded from the host stays there, too.
        shares_prefixes: equal prefixes are found again, whosever they are.
    """

    switching: SwitchOptions
    has_host: bool = True
    is_block_first: bool = False
    by_group: bool = True
    keeps_copies: bool = False
    shares_prefixes: bool = False


_UNBOUNDED = 1e9
"""Share of the time that ousting by rank may take: all arms follow the priorities, at any cost."""


def _swapping(timing: str) -> SwitchOptions:
    return SwitchOptions(
        mode="swap",
        timing=timing,
        write_back=False,
        keep_head=False,
        prefetch=False,
        max_share=_UNBOUNDED,
    )


ARMS: Mapping[str, Arm] = {
    "per_block": Arm(switching=_swapping("between"), by_group=False),
    "recompute": Arm(
        switching=SwitchOptions(mode="recompute", max_share=_UNBOUNDED),
        has_host=False,
        shares_prefixes=True,
    ),
    "groups": Arm(switching=_swapping("between")),
    "groups_async": Arm(switching=_swapping("auto")),
    "fastswitch": Arm(switching=_swapping("auto"), keeps_copies=True),
    "evenflow": Arm(
        switching=SwitchOptions(max_share=_UNBOUNDED),
        is_block_first=True,
        keeps_copies=True,
        shares_prefixes=True,
    ),
}
"""vLLM 0.3.3's way, vLLM's way today, then FastSwitch's three mechanisms one by one (block groups,
asynchronous switching, reuse of host copies), then everything there is."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What all arms have alike.

    Attributes:
        num_blocks: KV blocks on the device.
        num_host_blocks: KV blocks in host memory.
        max_num_seqs: most running requests.
        max_num_batched_tokens: token budget of a step.
    """

    num_blocks: int
    num_host_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int


def build_scheduler(arm: Arm, limits: Limits, transfers: TransferEngine) -> Scheduler:
    """Build the deciding half of an engine that switches as an arm does."""
    residency = Residency(
        transfers,
        LowerTier(Tier.HOST, limits.num_host_blocks),
        by_group=arm.by_group,
        keep_copies=arm.keeps_copies,
    )
    kv = KVCacheManager(
        limits.num_blocks,
        BLOCK_SIZE,
        enable_prefix_caching=arm.shares_prefixes,
        residency=residency if arm.has_host else None,
    )
    return Scheduler(
        Priority(),
        kv,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        switching=arm.switching,
    )


def stalls(engine: Engine) -> Mapping[str, float]:
    """Return for how many seconds steps had to wait so far, by cause."""
    return engine.scheduler.switcher.stall_s


def moved(engine: Engine) -> dict[str, float]:
    """Return what was moved so far: bytes and calls by direction, and tickets waited for."""
    residency = engine.scheduler.kv.residency
    if residency is None:
        return {}
    transfers, stats = residency.transfers, residency.stats
    figures: Counter[str] = Counter(conflicts=engine.scheduler.switcher.num_conflicts)
    for (source, destination), num_blocks in stats.num_blocks.items():
        name = f"{source.value}_to_{destination.value}"
        num_calls = stats.num_copies[source, destination] * transfers.num_pieces
        figures[f"bytes_{name}"] = num_blocks * transfers.bytes_per_block
        figures[f"calls_{name}"] = num_calls
        figures[f"blocks_per_copy_{name}"] = num_blocks / stats.num_copies[source, destination]
    return dict(figures)
