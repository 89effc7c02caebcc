"""Context switches: how a request leaves the device, and how it comes back.

    running ──leave──▶ preempted ──enter──▶ (arriving) ──▶ running

Here, what leaves is computed again. With tiers below the device, `Swapper` takes this one's place.

Knows: what leaving and returning costs, and how much of that there may be.
Does not know: ranks and queues; who leaves and who comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.wording import counted
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.residency import Arrival
from evenflow.scheduling.plan import StepPlan
from evenflow.scheduling.switch_costs import SwitchBudget, SwitchCosts

PreemptionMode = Literal["auto", "swap", "recompute"]
SwapTiming = Literal["auto", "beside", "between"]


@dataclass(slots=True, frozen=True, kw_only=True)
class SwitchOptions:
    """How requests are switched. Each part can be turned off to see what it is good for.

    Attributes:
        mode: swap always, recompute always, or what costs less each time.
        timing: beside the steps always, between them always, or what costs less each time.
        write_back: copy full blocks to the host before they have to leave.
        keep_head: leave the blocks of a preempted request findable on the device until the room is
            needed, from its end on.
        prefetch: load blocks of whoever is next before there is a place for it.
        max_share: most of the time (0-1) that ousting requests by rank may take.
    """

    mode: PreemptionMode = "auto"
    timing: SwapTiming = "auto"
    write_back: bool = True
    keep_head: bool = True
    prefetch: bool = True
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
    """Takes requests off the device and brings them back, without other memory than the device's.

    Args:
        kv: the KV memory.
        options: how.

    Attributes:
        options: how.
        costs: what is known of times.
        budget: what ousting by rank may cost.
        stall_s: seconds for which steps had to wait, by every cause that there can be.
        num_conflicts: tickets that a step had to wait for because it wrote into their blocks.
    """

    def __init__(self, kv: KVCacheManager, options: SwitchOptions) -> None:
        self.options = options
        self.costs = SwitchCosts()
        self.budget = SwitchBudget(options.max_share)
        self.stall_s: dict[str, float] = {}
        self.num_conflicts = 0
        self._kv = kv

    def may_leave(self, request: Request, now_s: float) -> bool:
        """Return whether a request has been here long enough for switching it to be worth it."""
        stay_s = now_s - request.resident_since_s
        return stay_s >= self.budget.min_residency_s(self._round_trip_s(request))

    def leave(self, request: Request) -> Departure:
        """Take a running request off the device."""
        num_blocks = self._kv.num_held_blocks(request.request_id)
        cost_s = self._round_trip_s(request)
        self._let_go(request)
        return Departure("recompute", f"gave back {counted(num_blocks, 'block')}", cost_s)

    def end(self, request: Request, now_s: float) -> None:
        """Keep what may be needed of a request that has ended and still holds its blocks."""

    def back(self, request: Request, now_s: float) -> str | None:
        """Note that a request runs; return why its KV was not kept while it was away, if so."""
        return None

    def rerank(self, request: Request) -> None:
        """Take in that a request has another priority."""

    def enter(self, request: Request, num_running: int) -> int | None:
        """Give a request memory, and send for what is worth loading; see `KVCacheManager.admit`."""
        return self._kv.admit(request, num_running, load=False)

    def is_arriving(self, request: Request) -> bool:
        """Return whether KV of a request that was entered is on its way to the device."""
        return False

    def num_arriving_bytes(self, request: Request) -> int:
        """Return how much KV is on its way to a request that was just entered."""
        return 0

    def may_arrive_beside(self, request: Request, num_running: int, now_s: float) -> bool:
        """Return whether steps go on while a request that was just entered arrives."""
        return False

    def arriving_words(self, request: Request) -> str:
        """Say what is on its way to a request that was just entered."""
        return ""

    def wait_for(self, requests: Collection[Request]) -> float:
        """Let everybody wait until requests have arrived, so that `landed` returns them.

        Returns:
            Seconds for which everybody waited.
        """
        return 0.0

    def landed(self) -> dict[RequestId, Arrival]:
        """Return which requests have arrived, and how."""
        return {}

    def before_step(
        self,
        plan: StepPlan,
        spare: Iterable[Request],
        next_up: Callable[[], Request | None],
        now_s: float,
    ) -> None:
        """See to it that a step may write where it will, and use what the links have to spare.

        Args:
            plan: what is about to be computed.
            spare: running requests, those first that are likely to leave.
            next_up: returns who is likely to enter next.
            now_s: the time.
        """

    def rest(self) -> bool:
        """Use the links while there are no requests; return whether anything is being moved."""
        return False

    def after_step(self, plan: StepPlan, seconds: float) -> None:
        """Learn from how long a step took."""
        num_requests = len(plan.requests) + len(plan.coasting)
        if plan.num_tokens > num_requests:
            self.costs.note_step(num_requests, plan.num_tokens, seconds, 0.0)

    def _round_trip_s(self, request: Request) -> float:
        """Return what leaving and returning costs at most, as far as it is known."""
        return self.costs.recompute_s(request.num_computed_tokens) or 0.0

    def _let_go(self, request: Request) -> None:
        """Give back what a request holds on the device."""
        if not self.options.keep_head:
            self._kv.disown(request.request_id)
        self._kv.free(request.request_id)
