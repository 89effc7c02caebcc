"""Completions that are computed from event to event against a link stepped in tiny ticks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.core.clock import VirtualClock
from evenflow.memory.extents import Extent
from evenflow.memory.transfers import Ticket, Tier
from evenflow.simulation.links import SimulatedTransfers
from evenflow.simulation.shapes import LinkShape
from support.fluid_link import FluidFlow, finish_times
from support.tickets import tickets_of

TICK_S = 0.01
DIRECTIONS = ((Tier.DEVICE, Tier.HOST), (Tier.HOST, Tier.DEVICE))

links = st.builds(
    LinkShape,
    bytes_per_s=st.sampled_from([0.5, 1.0, 4.0]),
    latency_s=st.sampled_from([0.0, 0.3]),
    dispatch_s=st.sampled_from([0.0, 0.2, 1.0, 2.5]),
    min_copy_s=st.sampled_from([0.0, 0.7]),
)
submissions = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.4, 1.1, 5.0]),  # seconds since the one before
        st.sampled_from(DIRECTIONS),
        st.lists(st.integers(1, 4), min_size=1, max_size=4),  # blocks of each copy
    ),
    min_size=1,
    max_size=6,
)


def extents(lengths: list[int]) -> list[tuple[Extent, Extent]]:
    return [(Extent(8 * n, length), Extent(8 * n, length)) for n, length in enumerate(lengths)]


@settings(max_examples=60, deadline=None)
@given(links=st.tuples(links, links), work=submissions, num_pieces=st.sampled_from([1, 2]))
def test_completions_are_those_of_a_link_stepped_in_tiny_ticks(
    links: tuple[LinkShape, LinkShape],
    work: list[tuple[float, tuple[Tier, Tier], list[int]]],
    num_pieces: int,
) -> None:
    shapes = dict(zip(DIRECTIONS, links, strict=True))
    clock = VirtualClock()
    engine = SimulatedTransfers(clock, shapes, bytes_per_block=1, num_pieces=num_pieces)
    flows: dict[tuple[Tier, Tier], list[tuple[Ticket, FluidFlow]]] = {d: [] for d in DIRECTIONS}
    ended: dict[Ticket, float] = {}
    dispatcher_free_s = 0.0

    def run_until(now_s: float) -> None:
        while (next_s := engine.next_completion_s()) <= now_s:
            clock.advance_to(next_s)
            done = tickets_of(engine.poll())
            assert done
            ended.update(dict.fromkeys(done, next_s))
            engine.check_integrity()
        clock.advance_to(now_s)

    for gap_s, direction, lengths in work:
        run_until(clock.now_s() + gap_s)
        shape = shapes[direction]
        ticket = engine.submit(*direction, extents(lengths))
        engine.check_integrity()
        piece_s = [max(shape.min_copy_s, n / num_pieces / shape.bytes_per_s) for n in lengths]
        start_s = max(clock.now_s(), dispatcher_free_s)
        dispatcher_free_s = start_s + len(lengths) * num_pieces * shape.dispatch_s
        flow = FluidFlow(num_pieces * sum(piece_s), start_s, dispatcher_free_s)
        flows[direction].append((ticket, flow))
    while engine.in_flight:
        run_until(engine.next_completion_s())

    for direction, carried in flows.items():
        expected = finish_times([flow for _, flow in carried], TICK_S)
        for (ticket, _), finished_s in zip(carried, expected, strict=True):
            landing_s = finished_s + shapes[direction].latency_s
            assert ended[ticket] == pytest.approx(landing_s, abs=8 * TICK_S)


@settings(max_examples=60, deadline=None)
@given(links=st.tuples(links, links), work=submissions)
def test_wait_ends_when_completion_was_foretold(
    links: tuple[LinkShape, LinkShape],
    work: list[tuple[float, tuple[Tier, Tier], list[int]]],
) -> None:
    clock = VirtualClock()
    engine = SimulatedTransfers(clock, dict(zip(DIRECTIONS, links, strict=True)), bytes_per_block=1)
    tickets = []
    for gap_s, direction, lengths in work:
        clock.advance(gap_s)
        tickets.append(engine.submit(*direction, extents(lengths)))
    foretold = {ticket: engine.completion_s(ticket) for ticket in engine.in_flight}
    for ticket in tickets:
        before_s = clock.now_s()
        engine.wait([ticket])
        assert clock.now_s() == pytest.approx(max(before_s, foretold.get(ticket, 0.0)))
        assert ticket not in engine.in_flight
    assert set(tickets_of(engine.poll())) == set(tickets)
