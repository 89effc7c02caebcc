"""Copies on streams that do everything as late as they may end in the bytes they should."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.core.clock import MonotonicClock
from evenflow.execution.torch.cuda_transfers import CudaTransfers
from evenflow.execution.torch.kv_store import KVLayout
from support.fake_cuda import FakeGpu
from support.transfer_world import Action, World, actions


@pytest.mark.parametrize("layout", ["block_first", "layer_first"])
@settings(max_examples=150, deadline=None)
@given(work=st.lists(actions, min_size=5, max_size=40), seed=st.integers(0, 1 << 16))
def test_copies_on_streams_end_as_if_they_were_done_at_once(
    layout: KVLayout, work: list[Action], seed: int
) -> None:
    gpu = FakeGpu(seed)
    with pytest.MonkeyPatch.context() as patch:
        gpu.install(patch)
        world = World(
            layout,
            make_engine=lambda *tiers: CudaTransfers(*tiers, clock=MonotonicClock()),
            step=gpu.compute.put,
        )
        for action in work:
            world.do(action)
        world.end(gpu.compute.synchronize)
