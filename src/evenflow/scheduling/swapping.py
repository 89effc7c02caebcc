"""Context switches that move KV to lower tiers and back.

    running ──leave──▶ preempted ──enter──▶ arriving ──landed──▶ running
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

from collections.abc import Callable, Collection, Iterable

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.status import RequestStatus
from evenflow.core.wording import counted
from evenflow.memory.extents import Extent, coalesce
from evenflow.memory.kv_cache_manager import KVCacheManager
from evenflow.memory.request_copies import RequestCopies
from evenflow.memory.residency import Arrival, Stored
from evenflow.memory.transfers import Tier
from evenflow.scheduling.plan import StepPlan
from evenflow.scheduling.switch_costs import Choice
from evenflow.scheduling.switching import Departure, Switcher, SwitchOptions

_WRITE_BACK_BLOCKS = 8
"""Most blocks written back ahead of need per step, so that a switch never waits for many."""

_PREFETCH_BLOCKS = 32
"""Most blocks that are loaded ahead of need at once, so that a load never waits for many."""

_MIN_OCCUPANCY = 0.5
"""Share of the device's blocks that hold something when blocks begin to be written back. Before,
nobody has to leave soon: copies would take time, and as much memory again, for nothing."""

_STALL_CAUSES = ("swap_in", "swap_out", "conflict")
"""What a step may wait for: KV to arrive, KV to be gone, or a copy of blocks it writes into."""

_MAX_SLOWDOWN = 0.5
"""Moving blocks ahead of need moves some that need not have moved; where copying slows the steps by
more than this share of its time, that is not worth it."""


class Swapper(Switcher):
    """Takes requests off the device and brings them back, by way of lower tiers.

    Args:
        kv: the KV memory.
        copies: what lower tiers have of requests.
        options: how.
    """

    def __init__(self, kv: KVCacheManager, copies: RequestCopies, options: SwitchOptions) -> None:
        super().__init__(kv, options)
        self.stall_s = dict.fromkeys(_STALL_CAUSES, 0.0)
        self._copies = copies
        self._residency = copies.residency
        self._prefetcher = kv.prefetcher if options.prefetch else None
        self._store_choice = Choice()
        self._load_choice = Choice()
        # Requests, tokens and seconds of the last step, and whether anything was copied beside it.
        self._step: tuple[int, int, float] | None = None
        self._is_step_beside = False

    def leave(self, request: Request) -> Departure:
        """Take a running request off the device."""
        if self._is_recomputed_sooner(request):
            return super().leave(request)
        num_blocks = self._kv.num_held_blocks(request.request_id)
        cost_s = self._round_trip_s(request)
        stored = self._copies.leave(request)
        self._time_store(stored)
        self._let_go(request)
        words = (
            f"gave back {counted(num_blocks, 'block')}, "
            f"{stored.num_clean} of them clean, {stored.num_written} written"
        )
        if stored.num_left_out:
            words += f", {stored.num_left_out} lost because the host has no room"
        return Departure("swap", words, cost_s, self._num_bytes(stored.num_written))

    def end(self, request: Request, now_s: float) -> None:
        """Keep what a session may need of a request that has ended and still holds its blocks."""
        if self._kv.holds(request.request_id):
            is_whole = request.status.finish_reason in ("stop", "length")
            if request.status is RequestStatus.FINISHED_ERROR:
                self._copies.disown(request)
            elif request.session_id is not None and is_whole:
                self._time_store(self._copies.keep(request))
        self._copies.end(request, now_s)

    def back(self, request: Request, now_s: float) -> str | None:
        """Note that a request runs; return why its KV was not kept while it was away, if so."""
        return self._copies.back(request, now_s)

    def rerank(self, request: Request) -> None:
        """Take in that a request has another priority."""
        self._copies.rerank(request)

    def enter(self, request: Request, num_running: int) -> int | None:
        """Give a request memory, and send for what is worth loading; see `KVCacheManager.admit`."""
        return self._kv.admit(request, num_running, load=self._is_loaded_sooner(request))

    def is_arriving(self, request: Request) -> bool:
        """Return whether KV of a request that was entered is on its way to the device."""
        return self._copies.is_arriving(request.request_id)

    def num_arriving_bytes(self, request: Request) -> int:
        """Return how much KV is on its way to a request that was just entered."""
        return self._num_bytes(self._residency.arrivals[request.request_id].num_blocks)

    def may_arrive_beside(self, request: Request, num_running: int, now_s: float) -> bool:
        """Return whether steps go on while a request that was just entered arrives.

        They do if that delays everybody by less, in proportion to what they wait for anyway.
        """
        if num_running == 0 or self.options.timing == "between":
            return False
        step_s = self.costs.step_s
        if step_s == 0 or self.options.timing == "beside":
            return True
        num_blocks = self._residency.arrivals[request.request_id].num_blocks
        load_s = self.costs.move_s(Tier.HOST, Tier.DEVICE, num_blocks)
        # What residents wait makes their time between tokens so much longer; what the request waits
        # for the next step makes the gap longer that it has had already.
        delay = num_running * load_s / step_s
        gap_s = now_s - request.left_s + load_s + step_s
        own_delay = max(step_s - load_s, 0.0) / gap_s
        return self._load_choice.beside(self._slowdown * delay + own_delay, delay)

    def arriving_words(self, request: Request) -> str:
        """Say what is on its way to a request that was just entered."""
        arrival = self._residency.arrivals[request.request_id]
        tiers = " and ".join(dict.fromkeys(ticket.source.value for ticket in arrival.tickets))
        return f"{counted(arrival.num_blocks, 'block')} loaded from {tiers}"

    def wait_for(self, requests: Collection[Request]) -> float:
        """Let everybody wait until requests have arrived, so that `landed` returns them.

        Returns:
            Seconds for which everybody waited.
        """
        arrivals = [self._residency.arrivals[request.request_id] for request in requests]
        tickets = [ticket for arrival in arrivals for ticket in arrival.tickets]
        waited_s = self._residency.transfers.wait(tickets)
        self.stall_s["swap_in"] += waited_s
        return waited_s

    def landed(self) -> dict[RequestId, Arrival]:
        """Return which requests have arrived, and how."""
        outcomes, arrived = self._residency.poll()
        for outcome in outcomes:
            self.costs.note_transfer(outcome)
        if outcomes and self._prefetcher is not None:
            self._prefetcher.settle()
        self._learn(sum(outcome.seconds for outcome in outcomes))
        return arrived

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
        residency = self._residency
        if residency.is_busy:
            tickets = residency.conflicts(_written_extents(plan, self._kv.block_size))
            if tickets:
                self.num_conflicts += len(tickets)
                self.stall_s["conflict"] += residency.transfers.fence(tickets)
        elif self._slowdown < _MAX_SLOWDOWN:
            self._work_ahead(spare, next_up, now_s)
        residency.spill()
        self._is_step_beside = residency.is_busy

    def rest(self) -> bool:
        """Use the links while there are no requests; return whether anything is being moved."""
        self.landed()
        self._residency.spill()
        return self._residency.is_busy

    def after_step(self, plan: StepPlan, seconds: float) -> None:
        """Remember how long a step took, to learn from it once it is known what was beside it."""
        if plan.requests:
            self._step = (len(plan.requests), plan.num_tokens, seconds)

    @property
    def _writes_back(self) -> bool:
        """Whether copies may be of use: content is to go soon, or to outlive a restart."""
        is_useful = self._kv.occupancy >= _MIN_OCCUPANCY or self._residency.disk is not None
        return self.options.write_back and is_useful

    @property
    def _slowdown(self) -> float:
        return max(0.0, self.costs.slowdown.value or 0.0)

    def _num_bytes(self, num_blocks: int) -> int:
        return num_blocks * self._residency.transfers.bytes_per_block

    def _learn(self, moved_s: float) -> None:
        """Take in the last step, beside which so many seconds of copying came to their end."""
        if self._step is not None and bool(moved_s) is self._is_step_beside:
            self.costs.note_step(*self._step, moved_s)
        self._step = None

    def _is_recomputed_sooner(self, request: Request) -> bool:
        """Return whether computing a request's KV again costs less than moving it off and back."""
        if self.options.mode == "recompute" or request.pooling is not None:
            return True
        recompute_s = self.costs.recompute_s(request.num_computed_tokens)
        if self.options.mode == "swap" or recompute_s is None:
            return False
        num_blocks = self._kv.blocks_for(request.num_computed_tokens)
        return recompute_s < self._move_s(self._copies.num_dirty(request), num_blocks)

    def _is_loaded_sooner(self, request: Request) -> bool:
        """Return whether what lower tiers have of a request is loaded sooner than computed."""
        num_tokens = self._kv.num_loadable_tokens(request)
        recompute_s = self.costs.recompute_s(num_tokens)
        if self.options.mode == "swap" or recompute_s is None:
            return True
        return self._move_s(0, self._kv.blocks_for(num_tokens)) <= recompute_s

    def _round_trip_s(self, request: Request) -> float:
        """Return what leaving and returning costs at most, as far as it is known."""
        if self.options.mode == "recompute":
            return super()._round_trip_s(request)
        num_blocks = self._kv.blocks_for(request.num_computed_tokens)
        moved_s = self._move_s(num_blocks, num_blocks)
        return (
            moved_s if self.options.mode == "swap" else min(moved_s, super()._round_trip_s(request))
        )

    def _move_s(self, num_blocks_out: int, num_blocks_in: int) -> float:
        return self.costs.move_s(Tier.DEVICE, Tier.HOST, num_blocks_out) + self.costs.move_s(
            Tier.HOST, Tier.DEVICE, num_blocks_in
        )

    def _time_store(self, stored: Stored) -> None:
        """Let a store run beside the steps, or wait for it."""
        timing = self.options.timing
        if stored.ticket is None or timing == "beside":
            return
        store_s = self._move_s(stored.num_written, 0)
        if timing == "between" or not self._store_choice.beside(self._slowdown * store_s, store_s):
            self.stall_s["swap_out"] += self._residency.transfers.wait([stored.ticket])

    def _work_ahead(
        self, spare: Iterable[Request], next_up: Callable[[], Request | None], now_s: float
    ) -> None:
        """Move blocks before they have to, while the links are idle."""
        if self._prefetcher is not None and (request := next_up()) is not None:
            self._prefetcher.start(request, _PREFETCH_BLOCKS)
        left = _WRITE_BACK_BLOCKS if self._writes_back else 0
        for request in spare:
            if left <= 0:
                return
            left -= self._copies.write_back(request, left, now_s)


def switcher_for(kv: KVCacheManager, options: SwitchOptions) -> Switcher:
    """Return what switches requests with the memory there is."""
    return Switcher(kv, options) if kv.copies is None else Swapper(kv, kv.copies, options)


def _written_extents(plan: StepPlan, block_size: int) -> list[Extent]:
    """Return the blocks that a step writes into."""
    written: set[int] = {destination for _, destination in plan.copies}
    for first, count, table in zip(plan.starts, plan.num_new_tokens, plan.tables, strict=True):
        stop = -(-(first + count) // block_size)
        written.update(table.ids[first // block_size : stop].tolist())
    return coalesce(sorted(written))
