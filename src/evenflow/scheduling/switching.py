"""Context switches: how a request leaves the device, and how it comes back.

    running ──leave──▶ preempted ──enter──▶ arriving ──land──▶ running
               │                      │         (KV is on its way, memory is held)
               │                      └─ what is not worth loading is computed again
               └─ what has no copy yet is written, unless computing it again is cheaper

Each can be done beside the steps or between them. Beside: the copy goes on while others compute; a
store needs nobody to wait unless somebody writes into the very blocks that it still reads, and a
load keeps its own request alone waiting. Between: everybody waits, and nothing slows a step.

Knows: what switches cost (`SwitchCosts`), and which way to take.
Does not know: ranks and queues; who leaves and who comes back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.wording import counted
from evenflow.memory.extents import Extent, coalesce
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.residency import Arrival, Residency, Stored
from evenflow.memory.transfers import Tier
from evenflow.scheduling.plan import StepPlan
from evenflow.scheduling.switch_costs import Choice, SwitchBudget, SwitchCosts

PreemptionMode = Literal["auto", "swap", "recompute"]
SwapTiming = Literal["auto", "beside", "between"]

_WRITE_BACK_BLOCKS = 8
"""Most blocks written back ahead of need per step, so that a switch never waits for many."""

_MAX_SLOWDOWN = 0.5
"""Writing back ahead of need moves blocks that may never leave; where copying slows the steps by
more than this share of its time, that is not worth it."""


@dataclass(slots=True, frozen=True, kw_only=True)
class SwitchOptions:
    """How requests are switched. Each part can be turned off to see what it is good for.

    Attributes:
        mode: swap always, recompute always, or what costs less each time.
        timing: beside the steps always, between them always, or what costs less each time.
        write_back: copy full blocks to the host before they have to leave.
        keep_head: leave the blocks of a preempted request findable on the device until the room is
            needed, from its end on.
        max_share: most of the time (0-1) that ousting requests by rank may take.
    """

    mode: PreemptionMode = "auto"
    timing: SwapTiming = "auto"
    write_back: bool = True
    keep_head: bool = True
    max_share: float = 0.1


@dataclass(slots=True, frozen=True)
class Departure:
    """How a request left.

    Attributes:
        mode: "swap" or "recompute".
        words: what became of its KV.
        cost_s: what leaving and returning is expected to cost the others.
        num_bytes: KV that is written to a lower tier for it.
    """

    mode: str
    words: str
    cost_s: float
    num_bytes: int = 0


class Switcher:
    """Takes requests off the device and brings them back.

    Args:
        kv: the KV memory.
        options: how.

    Attributes:
        options: how.
        costs: what is known of times.
        budget: what ousting by rank may cost.
        stall_s: seconds for which steps had to wait, by cause: "swap_in", "swap_out", "conflict".
        num_conflicts: tickets that a step had to wait for because it wrote into their blocks.
    """

    def __init__(self, kv: KVCacheManager, options: SwitchOptions) -> None:
        self.options = options
        self.costs = SwitchCosts()
        self.budget = SwitchBudget(options.max_share)
        self.stall_s: defaultdict[str, float] = defaultdict(float)
        self.num_conflicts = 0
        self._kv = kv
        self._store_choice = Choice()
        self._load_choice = Choice()
        # Requests, tokens and seconds of the last step, and whether anything was copied beside it.
        self._step: tuple[int, int, float] | None = None
        self._is_step_beside = False

    @property
    def _residency(self) -> Residency | None:
        return self._kv.residency

    def may_leave(self, request: Request, now_s: float) -> bool:
        """Return whether a request has been here long enough for switching it to be worth it."""
        num_blocks = self._kv.blocks_for(request.num_computed_tokens)
        cost_s = self.costs.move_s(Tier.DEVICE, Tier.HOST, num_blocks)
        cost_s += self.costs.move_s(Tier.HOST, Tier.DEVICE, num_blocks)
        recompute_s = self.costs.recompute_s(request.num_computed_tokens) or 0.0
        if self._residency is None or self.options.mode == "recompute":
            cost_s = recompute_s
        elif self.options.mode == "auto":
            cost_s = min(cost_s, recompute_s)
        return now_s - request.resident_since_s >= self.budget.min_residency_s(cost_s)

    def leave(self, request: Request) -> Departure:
        """Take a running request off the device."""
        kv = self._kv
        num_blocks = kv.num_held_blocks(request.request_id)
        mode, cost_s = self._way(request)
        words = f"gave back {counted(num_blocks, 'block')}"
        num_bytes = 0
        if mode == "swap" and (stored := kv.store(request)) is not None:
            num_bytes = self._num_bytes(stored.num_written)
            words += f", {stored.num_clean} of them clean, {stored.num_written} written"
            if stored.num_left_out:
                words += f", {stored.num_left_out} lost because the host has no room"
            self._time_store(stored)
        if not self.options.keep_head:
            kv.disown(request.request_id)
        kv.free(request.request_id)
        return Departure(mode, words, cost_s, num_bytes)

    def end(self, request: Request) -> None:
        """Keep what a session may need of a request that has ended and still holds its blocks."""
        if self._residency is None or not self._kv.holds(request.request_id):
            return
        if request.session_id is None or request.status.finish_reason not in ("stop", "length"):
            self._kv.appraise(request)
        elif (stored := self._kv.store(request)) is not None:
            self._time_store(stored)

    def enter(self, request: Request, num_running: int) -> int | None:
        """Give a request memory, and send for what is worth loading; see `KVCacheManager.admit`."""
        return self._kv.admit(request, num_running, load=self._is_worth_loading(request))

    def num_arriving_bytes(self, request: Request) -> int:
        """Return how much KV is on its way to a request that was just entered."""
        if self._residency is None:
            return 0
        return self._num_bytes(self._residency.arrivals[request.request_id].num_blocks)

    def may_arrive_beside(self, request: Request, num_running: int, now_s: float) -> bool:
        """Return whether steps go on while a request that was just entered arrives.

        They do if that delays everybody by less, in proportion to what they wait for anyway.
        """
        if num_running == 0 or self._residency is None or self.options.timing == "between":
            return False
        if self.options.timing == "beside":
            return True
        arrival = self._residency.arrivals[request.request_id]
        load_s = self.costs.move_s(Tier.HOST, Tier.DEVICE, arrival.num_blocks)
        step_s = self.costs.step_s
        if step_s == 0:
            return True
        # What residents wait makes their time between tokens so much longer; what the request waits
        # for the next step makes the gap longer that it has had already.
        delay = num_running * load_s / step_s
        slowdown = self.costs.slowdown.value or 0.0
        gap_s = now_s - request.left_s + load_s + step_s
        own_delay = max(step_s - load_s, 0.0) / gap_s
        return self._load_choice.beside(slowdown * delay + own_delay, delay)

    def wait_for(self, requests: Iterable[Request]) -> None:
        """Let everybody wait until requests have arrived; `landed` returns them then."""
        if self._residency is not None:
            arrivals = [self._residency.arrivals[request.request_id] for request in requests]
            tickets = [ticket for arrival in arrivals for ticket in arrival.tickets]
            self.stall_s["swap_in"] += self._residency.transfers.wait(tickets)

    def landed(self) -> dict[RequestId, Arrival]:
        """Return which requests have arrived, and how."""
        if self._residency is None:
            return {}
        outcomes, arrived = self._residency.poll()
        for outcome in outcomes:
            self.costs.note_transfer(outcome)
        self._learn(sum(outcome.seconds for outcome in outcomes))
        return arrived

    def before_step(self, plan: StepPlan, spare: Iterable[Request]) -> None:
        """See to it that a step may write where it will, and use what the links have to spare.

        Args:
            plan: what is about to be computed.
            spare: running requests, those first that are likely to leave.
        """
        residency = self._residency
        if residency is None:
            return
        if residency.is_busy:
            tickets = residency.conflicts(_written_extents(plan, self._kv.block_size))
            if tickets:
                self.num_conflicts += len(tickets)
                self.stall_s["conflict"] += residency.transfers.fence(tickets)
        elif self._has_links_to_spare():
            self._write_back(spare)
        residency.spill()
        self._is_step_beside = residency.is_busy

    def after_step(self, plan: StepPlan, seconds: float) -> None:
        """Remember how long a step took, to learn from it once it is known what was beside it."""
        if self._residency is not None and plan.requests:
            self._step = (len(plan.requests), plan.num_tokens, seconds)

    def _num_bytes(self, num_blocks: int) -> int:
        residency = self._residency
        return 0 if residency is None else num_blocks * residency.transfers.bytes_per_block

    def _learn(self, moved_s: float) -> None:
        """Take in the last step, beside which so many seconds of copying came to their end."""
        if self._step is not None and bool(moved_s) is self._is_step_beside:
            self.costs.note_step(*self._step, moved_s)
        self._step = None

    def _way(self, request: Request) -> tuple[str, float]:
        """Return the better mode to leave, and what leaving and returning costs that way."""
        recompute_s = self.costs.recompute_s(request.num_computed_tokens)
        mode = self.options.mode
        if self._residency is None or mode == "recompute" or request.pooling is not None:
            return "recompute", recompute_s or 0.0
        num_blocks = self._kv.blocks_for(request.num_computed_tokens)
        swap_s = self.costs.move_s(
            Tier.DEVICE, Tier.HOST, self._kv.num_dirty_blocks(request)
        ) + self.costs.move_s(Tier.HOST, Tier.DEVICE, num_blocks)
        if mode == "swap" or recompute_s is None or swap_s <= recompute_s:
            return "swap", swap_s
        return "recompute", recompute_s

    def _is_worth_loading(self, request: Request) -> bool:
        """Return whether what lower tiers have of a request is loaded sooner than computed."""
        if self._residency is None:
            return False
        num_tokens = self._kv.num_loadable_tokens(request)
        recompute_s = self.costs.recompute_s(num_tokens)
        if self.options.mode == "swap" or recompute_s is None:
            return True
        num_blocks = self._kv.blocks_for(num_tokens)
        return self.costs.move_s(Tier.HOST, Tier.DEVICE, num_blocks) <= recompute_s

    def _time_store(self, stored: Stored) -> None:
        """Let a store run beside the steps, or wait for it."""
        residency = self._residency
        if residency is None or stored.ticket is None or self.options.timing == "beside":
            return
        store_s = self.costs.move_s(Tier.DEVICE, Tier.HOST, stored.num_written)
        slowdown = self.costs.slowdown.value or 0.0
        if self.options.timing == "between" or not self._store_choice.beside(
            slowdown * store_s, store_s
        ):
            self.stall_s["swap_out"] += residency.transfers.wait([stored.ticket])

    def _has_links_to_spare(self) -> bool:
        """Return whether writing back beside the steps costs them little."""
        slowdown = self.costs.slowdown.value or 0.0
        return self.options.write_back and slowdown < _MAX_SLOWDOWN

    def _write_back(self, spare: Iterable[Request]) -> None:
        left = _WRITE_BACK_BLOCKS
        for request in spare:
            left -= self._kv.write_back(request, left)
            if left <= 0:
                return


def _written_extents(plan: StepPlan, block_size: int) -> list[Extent]:
    """Return the blocks that a step writes into."""
    written: set[int] = {destination for _, destination in plan.copies}
    for request, count, table in zip(plan.requests, plan.num_new_tokens, plan.tables, strict=True):
        first = request.num_computed_tokens
        stop = -(-(first + count) // block_size)
        written.update(table.ids[first // block_size : stop].tolist())
    return coalesce(sorted(written))
