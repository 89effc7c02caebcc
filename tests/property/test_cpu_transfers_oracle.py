"""Copies that a thread does beside its owner's writes end in the bytes they should."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.execution.torch.kv_store import KVLayout
from support.faulty_transfers import Fault
from support.transfer_world import Action, World, actions, some_faults


@pytest.mark.parametrize("layout", ["block_first", "layer_first"])
@settings(max_examples=150, deadline=None)
@given(work=st.lists(actions, min_size=5, max_size=40))
def test_copies_beside_writes_end_as_if_they_were_done_at_once(
    layout: KVLayout, work: list[Action]
) -> None:
    world = World(layout)
    for action in work:
        world.do(action)
    world.end()


@settings(max_examples=150, deadline=None)
@given(
    work=st.lists(actions, min_size=5, max_size=40),
    faults=st.lists(some_faults, min_size=5, max_size=30),
)
def test_faulty_copies_fail_and_spoil_exactly_what_reads_them(
    work: list[Action], faults: list[Fault | None]
) -> None:
    world = World("block_first", faults)
    for action in work:
        world.do(action)
    world.end()
