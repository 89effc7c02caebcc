"""Where `context_switch.py` serves: this machine's CPU, its GPU, or simulated GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from context_switch_arms import ARMS, BASELINE, BLOCK_SIZE, Arm, Limits, build_scheduler
from context_switch_gpu import GpuWorld
from context_switch_load import LoadShape
from context_switch_run import Stage
from evenflow.core.clock import MonotonicClock, VirtualClock
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.transfers import CpuTransfers
from evenflow.models.registry import build_model
from evenflow.simulation.executor import SimulatedExecutor
from evenflow.simulation.links import SimulatedTransfers, host_links
from evenflow.simulation.prompts import MAX_TOKEN_ID
from evenflow.simulation.roofline import RooflineCosts
from evenflow.simulation.shapes import load_device, load_model, num_kv_blocks

HOST_BYTES = 60_000_000_000


class World(Protocol):
    """A machine with a model on it.

    Attributes:
        shape: of a load that makes it switch.
    """

    shape: LoadShape

    @property
    def num_kv_tokens(self) -> int:
        """Tokens for which there is KV memory on the device."""
        ...

    def stage(self, arm: Arm) -> Stage:
        """Return an engine that switches as an arm does, with nothing to do yet."""
        ...


class SimulatedWorld:
    """A device under a virtual clock, whose step times are the roofline's.

    Args:
        model: name of the model's shape.
        device: name of the device's shape.
        shape: of the load.
        num_blocks: KV blocks; by default as many as the device holds.
    """

    def __init__(
        self, model: str, device: str, shape: LoadShape, num_blocks: int | None = None
    ) -> None:
        self.shape = shape
        self._model = load_model(model)
        self._device = load_device(device)
        self._costs = RooflineCosts(self._model, self._device)
        self._bytes_per_block = BLOCK_SIZE * self._model.kv_bytes_per_token
        self._limits = Limits(
            num_blocks=num_blocks or num_kv_blocks(self._model, self._device),
            num_host_blocks=HOST_BYTES // self._bytes_per_block,
            max_num_seqs=256,
            max_num_batched_tokens=512,
        )

    @property
    def num_kv_tokens(self) -> int:
        """Tokens for which there is KV memory on the device."""
        return self._limits.num_blocks * BLOCK_SIZE

    def stage(self, arm: Arm) -> Stage:
        """Return an engine that switches as an arm does, with nothing to do yet."""
        clock = VirtualClock()
        transfers = SimulatedTransfers(
            clock,
            host_links(self._device),
            bytes_per_block=self._bytes_per_block,
            num_pieces=1 if arm.is_block_first else 2 * self._model.num_layers,
        )
        limits = ModelLimits(self.shape.max_tokens + 1, MAX_TOKEN_ID + 1)
        scheduler = build_scheduler(arm, self._limits, transfers)
        executor = SimulatedExecutor(self._costs, clock)
        return Stage(Engine(scheduler, executor, clock, limits), clock, limits.vocab_size)


class RealWorld:
    """This machine's CPU, and a model that is computed in earnest.

    Args:
        model: its name.
        shape: of the load.
        num_blocks: KV blocks; some more in what is called the host's memory.
    """

    def __init__(self, model: str, shape: LoadShape, num_blocks: int) -> None:
        # Not above: they need packages that a machine with `--world gpu` can do without.
        from evenflow.config import load_config
        from evenflow.engine.backends import choose_backend
        from evenflow.models.sources import resolve
        from evenflow.models.weights.open import open_checkpoint

        config = load_config({"device": "cpu"}).config
        checkpoint = open_checkpoint(resolve(model, cache_dir=config.paths.cache))
        self.shape = shape
        self._spec = checkpoint.spec
        self._backend = choose_backend(config, self._spec, is_quantised=checkpoint.is_quantised())
        weights = checkpoint.weights(linear=self._backend.linear)
        self._model = build_model(self._spec, weights, self._backend.ops())
        self._limits = Limits(
            num_blocks=num_blocks,
            num_host_blocks=10 * num_blocks,
            max_num_seqs=32,
            max_num_batched_tokens=128,
        )
        self._warm_up()

    @property
    def num_kv_tokens(self) -> int:
        """Tokens for which there is KV memory on the device."""
        return self._limits.num_blocks * BLOCK_SIZE

    def stage(self, arm: Arm) -> Stage:
        """Return an engine that switches as an arm does, with nothing to do yet."""
        clock = MonotonicClock()
        device, host = (
            KVStore(
                num_blocks,
                self._spec.num_layers,
                self._spec.num_kv_heads,
                self._spec.head_dim,
                BLOCK_SIZE,
                "block_first" if arm.is_block_first else "layer_first",
                self._backend.kv_dtype,
            )
            for num_blocks in (self._limits.num_blocks, self._limits.num_host_blocks)
        )
        for store in (device, host):
            store.data.zero_()  # otherwise the system hands out its pages in the middle of the run
        transfers = CpuTransfers(device, host, clock=clock)
        scheduler = build_scheduler(arm, self._limits, transfers)
        executor = self._backend.runner(
            self._model,
            device,
            max_num_seqs=self._limits.max_num_seqs,
            max_model_len=self.shape.max_tokens + 1,
        )
        limits = ModelLimits(self.shape.max_tokens + 1, self._spec.vocab_size)
        return Stage(Engine(scheduler, executor, clock, limits), clock, limits.vocab_size)

    def _warm_up(self) -> None:
        """Have all kernels compiled."""
        engine = self.stage(ARMS[BASELINE]).engine
        engine.add_request("warm-up", [0, 0], SamplingParams(max_tokens=3, ignore_eos=True))
        while engine.has_work:
            engine.step()


def _real(quick: bool) -> World:
    if quick:
        shape = LoadShape(num_conversations=6, rate=20, frequency=0.2, max_tokens=120, scale=0.05)
        return RealWorld("smollm2", shape, num_blocks=10)
    shape = LoadShape(num_conversations=48, rate=16, frequency=0.04, max_tokens=1000, scale=0.5)
    return RealWorld("smollm2", shape, num_blocks=64)


def _paper(model: str, device: str, frequency: float, *, quick: bool) -> World:
    if quick:
        shape = LoadShape(num_conversations=60, rate=2, frequency=frequency, max_tokens=4000)
        return SimulatedWorld(model, device, shape, num_blocks=420)
    shape = LoadShape(num_conversations=1000, rate=0.2, frequency=frequency, max_tokens=8000)
    return SimulatedWorld(model, device, shape)


def _gpu(quick: bool) -> World:
    if quick:
        shape = LoadShape(
            num_conversations=20, rate=4.0, frequency=0.04, max_tokens=2000, scale=0.5
        )
        return GpuWorld(shape, num_blocks=300)
    shape = LoadShape(num_conversations=60, rate=1, frequency=0.04, max_tokens=4000)
    return GpuWorld(shape, num_blocks=1000)


WORLDS: Mapping[str, Callable[[bool], World]] = {
    "real": _real,
    "gpu": _gpu,
    "paper-a10": lambda quick: _paper("llama-3-8b", "a10", 0.04, quick=quick),
    "paper-a100": lambda quick: _paper("qwen-2.5-32b", "a100", 0.02, quick=quick),
}
"""By name, what builds a world: a small one, or the one whose figures count."""
