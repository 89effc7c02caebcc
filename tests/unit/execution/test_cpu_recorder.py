"""Replays of kernels on the CPU: what they compute, where, and what cannot be recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from evenflow.core.gguf_file import GGML_TYPES
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.kernels.cpu_recorder import CpuRecorder
from evenflow.execution.kernels.parallel import ThreadTeam
from evenflow.execution.ops import QuantisedRows
from evenflow.execution.torch.decode_recordings import NotRecordableError, Replay
from evenflow.models.weights.rounding import round_rows
from support.kernel_sets import NATIVE_SETS, kernel_set

DIM = 96
NUM_IDS = 50


@pytest.fixture(params=[1, 2, 3])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class World:
    """A small network over token ids, and a recorder of it.

    Args:
        name: a set of native kernels.
    """

    def __init__(self, name: str = "native-portable") -> None:
        kernels = kernel_set(name)
        team = ThreadTeam()
        assert kernels.replay is not None
        self.ops = CpuOps(kernels, team)
        self.record = CpuRecorder(team, kernels.replay)
        table = _random(NUM_IDS, DIM)
        storage = GGML_TYPES[8]
        rows = [QuantisedRows(storage, round_rows(_random(DIM, DIM), storage), DIM)] * 2
        self.embed = self.ops.embedding(table, 0.5)
        self.linear = self.ops.linear(rows)
        self.norm = torch.ones(DIM)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        residual = self.embed(ids)
        x = self.ops.rms_norm(residual, self.norm, 1e-5)
        for _ in range(4):
            x = self.ops.gated(self.linear(x), "silu")
            x = self.ops.add_rms_norm(x, residual, self.norm, 1e-5)
        return x


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def recorded(world: World, ids: torch.Tensor) -> tuple[Replay, torch.Tensor]:
    with torch.inference_mode():
        return world.record(lambda: world.forward(ids))


@pytest.mark.parametrize("num_rows", [1, 9, 40])
@pytest.mark.parametrize("name", NATIVE_SETS)
def test_replay_computes_from_what_its_inputs_hold_now(
    name: str, num_rows: int, num_threads: int
) -> None:
    world = World(name)
    ids = torch.zeros(num_rows, dtype=torch.int64)
    replay, out = recorded(world, ids)
    for seed in range(20):
        ids.copy_(torch.randint(NUM_IDS, ids.shape, generator=torch.Generator().manual_seed(seed)))
        replay()
        assert torch.equal(out, world.forward(ids))


def test_recordings_keep_their_results_apart() -> None:
    world = World()
    few, many = torch.arange(3), torch.arange(30)
    first, few_out = recorded(world, few)
    second, many_out = recorded(world, many)
    for _ in range(2):
        first()
        assert torch.equal(few_out, world.forward(few))
        second()
        assert torch.equal(many_out, world.forward(many))


def test_recorded_tensors_lie_where_dead_ones_lay() -> None:
    world = World()
    places = set()

    def run() -> torch.Tensor:
        x = torch.zeros(4, DIM)
        for _ in range(10):
            x = world.ops.rms_norm(x, world.norm, 1e-5)
            places.add(x.data_ptr())
        return x

    with torch.inference_mode():
        world.record(run)
    assert len(places) == 2  # what is read and what is written


def test_a_view_keeps_the_memory_of_a_recorded_tensor() -> None:
    world = World()

    def run() -> torch.Tensor:
        x = torch.zeros(4, DIM)
        view = world.ops.rms_norm(x, world.norm, 1e-5).view(2, -1)[1:]
        other = world.ops.rms_norm(x, world.norm, 1e-5)
        assert other.data_ptr() != view.untyped_storage().data_ptr()
        return other

    with torch.inference_mode():
        world.record(run)


def test_replay_uses_no_more_threads_than_it_was_recorded_with(num_threads: int) -> None:
    world, ids = World(), torch.arange(40)
    replay, out = recorded(world, ids)
    expected = out.clone()
    for now in (1, 2, 3, 4):
        torch.set_num_threads(now)
        with torch.inference_mode():
            out.zero_()
        replay()
        assert torch.equal(out, expected)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x + 1,
        lambda x: x.mul_(2.0),
        lambda x: x.t().reshape(-1),
        lambda x: x.t().contiguous(),
        lambda x: torch.cat([x, x]),
    ],
    ids=["new", "in place", "reshape", "contiguous", "cat"],
)
def test_what_is_no_kernel_cannot_be_recorded(
    compute: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    world = World()
    with torch.inference_mode(), pytest.raises(NotRecordableError, match="aten"):
        world.record(lambda: compute(world.forward(torch.arange(2))))
    assert recorded(world, torch.arange(2))  # the next recording is not disturbed
