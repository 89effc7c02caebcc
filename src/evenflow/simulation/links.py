"""Transfers under a virtual clock, over links that concurrent transfers share.

One ticket alone takes what the model of block swapping says it takes:

    latency + max(copies * dispatch, sum(max(min_copy, bytes / bandwidth)))

    submitted ──▶ waits for the dispatching thread ──▶ copies are dispatched one by one ──▶ done
                  (one thread serves all links)        └─ the link works on what is dispatched
                                                          and may still be at it long after

A link is a fluid server. The work of a ticket is the seconds it would keep the link busy alone; it
flows in evenly while its copies are dispatched, and the link divides itself among tickets that have
work left, equally, except that one which is limited by its dispatch leaves its rest to the others
(max-min fairness). Rates are constant between events, so completions are computed, not stepped.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from evenflow.core.clock import VirtualClock
from evenflow.core.errors import IntegrityError
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.residency import Residency
from evenflow.memory.transfers import Copy, Outcome, Ticket, Tier
from evenflow.simulation.shapes import DeviceShape, LinkShape

_DUST_S = 1e-9
"""Work below this is rounding."""


@dataclass(slots=True, eq=False)
class Flow:
    """The work of one ticket on a link.

    Attributes:
        ticket: whose it is.
        left_s: seconds of the whole link that it still needs.
        start_s: when its first copy is dispatched.
        dispatched_s: when its last copy is.
        inflow: its work per second while it is dispatched.
        backlog_s: work that is dispatched and not done yet.
        is_starved: whether it takes what is dispatched as it comes, and could take more.
        rate: its share of the link until the next event.
    """

    ticket: Ticket
    left_s: float
    start_s: float
    dispatched_s: float
    inflow: float = 0.0
    backlog_s: float = 0.0
    is_starved: bool = False
    rate: float = 0.0

    def __post_init__(self) -> None:
        if self.dispatched_s > self.start_s and not self.inflow:
            self.inflow = self.left_s / (self.dispatched_s - self.start_s)
            self.is_starved = True


class SharedLink:
    """One direction of a link.

    Args:
        now_s: its time, which only moves forward.
        flows: what is on it.
    """

    def __init__(self, now_s: float = 0.0, flows: Iterable[Flow] = ()) -> None:
        self.flows = list(flows)
        self._now_s = now_s

    def advance(self, until_s: float) -> list[tuple[float, Ticket]]:
        """Let the link work and return what it finished, and when, in order."""
        finished = []
        while self._next_event_s() <= until_s:
            finished += self.step()
        self._work(until_s)
        return finished

    def step(self) -> list[tuple[float, Ticket]]:
        """Move to the next event; return what is finished there. There must be a flow."""
        event_s = self._next_event_s()
        self._work(event_s)
        finished = [f for f in self.flows if f.dispatched_s <= event_s and f.left_s <= _DUST_S]
        if finished:
            self.flows = [flow for flow in self.flows if flow not in finished]
        return [(event_s, flow.ticket) for flow in finished]

    def rehearsal(self) -> SharedLink:
        """Return a link in the same state, to see what would come."""
        return SharedLink(self._now_s, [replace(flow) for flow in self.flows])

    def _next_event_s(self) -> float:
        """Divide the link, and return until when the division holds."""
        now_s = self._now_s
        _divide([flow for flow in self.flows if flow.start_s <= now_s])
        event_s = math.inf
        for flow in self.flows:
            if flow.start_s > now_s:
                at_s = flow.start_s
            elif flow.dispatched_s <= now_s:
                at_s = now_s + flow.left_s / flow.rate
            elif not flow.is_starved and flow.rate > flow.inflow:
                emptied_s = now_s + flow.backlog_s / (flow.rate - flow.inflow)
                at_s = min(flow.dispatched_s, emptied_s)
            else:
                at_s = flow.dispatched_s
            event_s = min(event_s, at_s)
        return event_s

    def _work(self, until_s: float) -> None:
        """Move to `until_s`, which no event precedes."""
        seconds = until_s - self._now_s
        for flow in self.flows:
            if flow.start_s > self._now_s:
                continue
            done_s = flow.rate * seconds
            flow.left_s = max(flow.left_s - done_s, 0.0)
            if flow.dispatched_s > self._now_s and not flow.is_starved:
                flow.backlog_s = max(flow.backlog_s + flow.inflow * seconds - done_s, 0.0)
                flow.is_starved = flow.backlog_s <= _DUST_S and flow.rate > flow.inflow
        self._now_s = until_s


def _divide(flows: list[Flow]) -> None:
    """Give each flow its max-min fair share: a starved one needs no more than its inflow.

    Dividing again changes nothing, to the last bit, so that what is foretold is what happens.
    """
    share, num_left = 1.0, len(flows)
    for flow in sorted((flow for flow in flows if flow.is_starved), key=lambda flow: flow.inflow):
        flow.is_starved = flow.inflow * num_left <= share
        if flow.is_starved:
            flow.rate = flow.inflow
            share -= flow.rate
            num_left -= 1
    for flow in flows:
        if not flow.is_starved:
            flow.rate = share / num_left


class SimulatedTransfers:
    """The transfer engine of a simulation.

    Args:
        clock: virtual time; `wait` moves it.
        links: by source and destination. Directions do not slow each other.
        bytes_per_block: bytes of a block over all layers.
        num_pieces: copies that a run of blocks takes: 1 when a block is one range over all layers
            (block-first), 2 * num_layers when every layer's keys and values lie apart.

    Attributes:
        bytes_per_block: bytes of a block over all layers.
        num_pieces: copies that a run of blocks takes.
    """

    def __init__(
        self,
        clock: VirtualClock,
        links: Mapping[tuple[Tier, Tier], LinkShape],
        *,
        bytes_per_block: int,
        num_pieces: int = 1,
    ) -> None:
        self._clock = clock
        self._shapes = dict(links)
        self._links = {direction: SharedLink(clock.now_s()) for direction in links}
        self.bytes_per_block = bytes_per_block
        self.num_pieces = num_pieces
        self._dispatcher_free_s = clock.now_s()
        # The tickets in flight, and how long each takes when nothing else is on its link.
        self._in_flight: dict[Ticket, float] = {}
        # Done by their link, and on their way for the link's latency: (when they arrive, order).
        self._landing: list[tuple[float, int, Ticket]] = []
        self._num_landed = 0
        self._done: list[Outcome] = []

    @property
    def in_flight(self) -> Collection[Ticket]:
        """The tickets that are not known to be done, in order of submission."""
        return self._in_flight.keys()

    def submit(
        self,
        source: Tier,
        destination: Tier,
        copies: Sequence[Copy],
        *,
        after: Collection[Ticket] = (),
    ) -> Ticket:
        """Start some copies and return at once.

        They begin when the tickets in `after` are done, as foretold now: what is submitted later
        may delay those tickets and does not delay this one.

        Raises:
            IntegrityError: there is no such link, or a copy's sides are not equally long.
        """
        self._catch_up()
        shape = self._shapes.get((source, destination))
        if shape is None:
            raise IntegrityError(f"there is no link from {source.value} to {destination.value}")
        ticket = Ticket(source, destination, tuple(copies))
        work_s = 0.0
        for origin, target in copies:
            if origin.length != target.length:
                raise IntegrityError(f"cannot copy {origin} to {target}")
            num_bytes = origin.length * self.bytes_per_block / self.num_pieces
            work_s += self.num_pieces * max(shape.min_copy_s, num_bytes / shape.bytes_per_s)
        issued_s = max(self._clock.now_s(), self._dispatcher_free_s)
        dispatch_s = len(copies) * self.num_pieces * shape.dispatch_s
        self._dispatcher_free_s = issued_s + dispatch_s
        earlier_s = (self.completion_s(earlier) for earlier in after if earlier in self._in_flight)
        start_s = max([issued_s, *earlier_s])
        flow = Flow(ticket, work_s, start_s, max(start_s, self._dispatcher_free_s))
        self._links[source, destination].flows.append(flow)
        self._in_flight[ticket] = shape.latency_s + max(dispatch_s, work_s)
        return ticket

    def poll(self) -> list[Outcome]:
        """Return how tickets ended that were not returned before, in order of completion."""
        self._catch_up()
        done, self._done = self._done, []
        return done

    def wait(self, tickets: Collection[Ticket]) -> float:
        """Move the clock to when tickets are done, as far as that is to come; return how far."""
        began_s = self._clock.now_s()
        for ticket in tickets:
            self._catch_up()
            if ticket in self._in_flight:
                self._clock.advance_to(self.completion_s(ticket))
                self._catch_up()
        return self._clock.now_s() - began_s

    def fence(self, tickets: Collection[Ticket]) -> float:
        """Wait: a simulated device cannot."""
        return self.wait(tickets)

    def close(self) -> None:
        """Nothing is held."""

    def completion_s(self, ticket: Ticket) -> float:
        """Return when a ticket in flight will be done if nothing more is submitted."""
        for landing_s, _, landing in self._landing:
            if landing is ticket:
                return landing_s
        direction = ticket.source, ticket.destination
        link = self._links[direction].rehearsal()
        while True:
            for finished_s, finished in link.step():
                if finished is ticket:
                    return finished_s + self._shapes[direction].latency_s

    def next_completion_s(self) -> float:
        """Return when the next ticket will be done if nothing more is submitted, or infinity."""
        self._catch_up()
        next_s = self._landing[0][0] if self._landing else math.inf
        for direction, link in self._links.items():
            if link.flows:
                rehearsal = link.rehearsal()
                while not (finished := rehearsal.step()):
                    pass
                next_s = min(next_s, finished[0][0] + self._shapes[direction].latency_s)
        return next_s

    def check_integrity(self) -> None:
        """Check that every ticket in flight is on its link or landing, once.

        Raises:
            IntegrityError: one is not.
        """
        on_links = [flow.ticket for link in self._links.values() for flow in link.flows]
        known = {*on_links, *(ticket for *_, ticket in self._landing)}
        if known != set(self._in_flight) or len(known) != len(on_links) + len(self._landing):
            raise IntegrityError("the links do not carry exactly the tickets in flight")

    def _catch_up(self) -> None:
        """Let the links work until now."""
        now_s = self._clock.now_s()
        for direction, link in self._links.items():
            for finished_s, ticket in link.advance(now_s):
                landing_s = finished_s + self._shapes[direction].latency_s
                heapq.heappush(self._landing, (landing_s, self._num_landed, ticket))
                self._num_landed += 1
        while self._landing and self._landing[0][0] <= now_s:
            *_, ticket = heapq.heappop(self._landing)
            self._done.append(Outcome(ticket, self._in_flight.pop(ticket)))


@dataclass(slots=True, frozen=True, kw_only=True)
class HostMemory:
    """Memory of the host for copies of KV.

    Attributes:
        num_blocks: blocks of it.
        bytes_per_block: bytes of a block over all layers.
        links: by source and destination.
        num_pieces: as for `SimulatedTransfers`.
        by_group: move runs of blocks as one copy.
        keep_copies: whether a copy outlives its return to the device.
    """

    num_blocks: int
    bytes_per_block: int
    links: Mapping[tuple[Tier, Tier], LinkShape]
    num_pieces: int = 1
    by_group: bool = True
    keep_copies: bool = True

    def build(self, clock: VirtualClock) -> Residency:
        """Build the host, with nothing on it."""
        transfers = SimulatedTransfers(
            clock, self.links, bytes_per_block=self.bytes_per_block, num_pieces=self.num_pieces
        )
        host = LowerTier(Tier.HOST, self.num_blocks)
        return Residency(transfers, host, by_group=self.by_group, keep_copies=self.keep_copies)


def host_links(device: DeviceShape) -> dict[tuple[Tier, Tier], LinkShape]:
    """Return the links between a device and its host, and its host's disk if that is described."""
    links = {
        (Tier.DEVICE, Tier.HOST): device.link("pcie"),
        (Tier.HOST, Tier.DEVICE): device.link("pcie"),
    }
    if "disk" in device.links:
        links[Tier.HOST, Tier.DISK] = links[Tier.DISK, Tier.HOST] = device.link("disk")
    return links
