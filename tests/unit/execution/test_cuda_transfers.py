from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from evenflow.core.clock import MonotonicClock
from evenflow.execution.torch.cuda_transfers import CudaTransfers
from evenflow.execution.torch.kv_store import KVLayout, KVStore
from evenflow.memory.extents import Extent
from evenflow.memory.transfers import Copy, Tier
from support.fake_cuda import FakeGpu
from support.faulty_transfers import DictBlocks

OUT = (Tier.DEVICE, Tier.HOST)
IN = (Tier.HOST, Tier.DEVICE)
SPILL = (Tier.HOST, Tier.DISK)
FETCH = (Tier.DISK, Tier.DEVICE)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Rig:
    """Stores of 8 blocks on a device that does nothing unasked: ones there, zeros on the host."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.gpu = FakeGpu()
        self.gpu.install(patch)
        self.device, self.host = (KVStore(8, 1, 1, 8, 4) for _ in range(2))
        self.device.data.fill_(1.0)
        self.host.data.fill_(0.0)
        self.disk = DictBlocks()
        self.engine = CudaTransfers(self.device, self.host, self.disk, clock=MonotonicClock())


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(monkeypatch)
    yield rig
    rig.engine.close()


def blocks(start: int, length: int, to: int) -> Copy:
    return Extent(start, length), Extent(to, length)


def test_fence_holds_up_the_compute_stream_and_not_the_host(rig: Rig) -> None:
    ticket = rig.engine.submit(*OUT, [blocks(0, 8, to=0)])
    assert rig.engine.fence([ticket]) == 0.0
    assert list(rig.engine.in_flight) == [ticket]
    rig.gpu.compute.put(lambda: rig.device.data.fill_(2.0))
    rig.gpu.compute.synchronize()
    assert (rig.host.data == 1).all()


def test_copy_waits_for_what_was_computed_before_it_was_submitted(rig: Rig) -> None:
    rig.gpu.compute.put(lambda: rig.device.data.fill_(3.0))
    rig.engine.wait([rig.engine.submit(*OUT, [blocks(0, 8, to=0)])])
    assert (rig.host.data == 3).all()


def test_poll_reports_what_the_events_say(rig: Rig) -> None:
    ticket = rig.engine.submit(*OUT, [blocks(0, 1, to=0)])
    outcomes = []
    while ticket in rig.engine.in_flight:
        outcomes += rig.engine.poll()
    [outcome] = outcomes
    assert outcome.ticket is ticket
    assert outcome.seconds == 0.002  # the fake events are 2 ms apart
    assert outcome.failure is None
    assert rig.engine.poll() == []


def test_transfer_goes_over_the_disk_and_back(rig: Rig) -> None:
    out = rig.engine.submit(*OUT, [blocks(0, 2, to=3)])
    spill = rig.engine.submit(*SPILL, [blocks(3, 2, to=0)], after=[out])
    fence = rig.engine.fence([spill])  # the host has to wait for the disk
    assert fence > 0
    rig.device.data.fill_(0.0)
    rig.engine.wait([rig.engine.submit(*FETCH, [blocks(0, 2, to=6)])])
    assert (rig.device.blocks[6:] == 1).all()
    assert (rig.device.blocks[:6] == 0).all()
    assert all(outcome.failure is None for outcome in rig.engine.poll())


def test_copy_that_cuda_refuses_makes_an_outcome_and_spoils_what_reads_it(rig: Rig) -> None:
    rig.gpu.broken = True
    out = rig.engine.submit(*OUT, [blocks(0, 1, to=0)])
    rig.gpu.broken = False
    rig.engine.submit(*IN, [blocks(0, 1, to=5)], after=[out])
    rig.engine.submit(*IN, [blocks(1, 1, to=6)], after=[out])
    rig.engine.wait(rig.engine.in_flight)
    first, second, third = (outcome.failure for outcome in rig.engine.poll())
    assert first == "CUDA did not take the copy: unspecified launch failure"
    assert second == f"there was nothing to copy: {first}"
    assert third is None


@needs_cuda
@pytest.mark.parametrize("layout", ["block_first", "layer_first"])
def test_blocks_survive_a_trip_over_every_tier_of_a_real_device(layout: KVLayout) -> None:
    shape = (16, 4, 2, 64, 16)
    device = KVStore(*shape, layout, device="cuda")
    host = KVStore(*shape, layout, pinned=True)
    assert host.data.is_pinned()
    device.data.normal_()
    before = device.blocks.clone()
    engine = CudaTransfers(device, host, DictBlocks(), clock=MonotonicClock())
    out = engine.submit(*OUT, [blocks(0, 9, to=5), blocks(12, 2, to=0)])
    assert engine.fence([out]) == 0.0
    device.data.zero_()
    spill = engine.submit(*SPILL, [blocks(7, 4, to=0)], after=[out])
    engine.submit(*IN, [blocks(5, 2, to=0)], after=[out])
    engine.submit(*FETCH, [blocks(0, 4, to=2)], after=[spill])
    engine.wait(engine.in_flight)
    assert torch.equal(device.blocks[:6], before[:6])
    assert not device.blocks[6:].any()
    outcomes = engine.poll()
    assert len(outcomes) == 4
    assert all(outcome.failure is None and outcome.seconds > 0 for outcome in outcomes)
    engine.close()


@needs_cuda
def test_memory_of_a_store_that_is_gone_can_be_pinned_again() -> None:
    for _ in range(3):
        assert KVStore(64, 4, 2, 64, 16, pinned=True).data.is_pinned()
