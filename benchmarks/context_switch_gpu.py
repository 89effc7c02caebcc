"""Llama-3-8B with random weights on a GPU, for `context_switch.py`: the engine as it runs there."""

from __future__ import annotations

import torch

from context_switch_arms import BLOCK_SIZE, Arm, Limits, build_scheduler
from context_switch_load import LoadShape
from context_switch_run import Stage
from evenflow.core.clock import MonotonicClock
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.execution.torch.cuda_transfers import CudaTransfers
from evenflow.execution.torch.kv_store import KVLayout, KVStore
from evenflow.execution.torch.model_runner import ModelRunner
from gpu_model import (
    LLAMA_3_8B,
    build_attention,
    build_llama_3_8b,
    build_runner,
    make_store,
    record,
)


class GpuWorld:
    """A CUDA device.

    Args:
        shape: of the load.
        num_blocks: KV blocks on the device, and four times as many in pinned memory.
    """

    def __init__(self, shape: LoadShape, num_blocks: int) -> None:
        if not torch.cuda.is_available():
            raise SystemExit("--world gpu needs a CUDA device, and torch finds none")
        self.shape = shape
        self._limits = Limits(
            num_blocks=num_blocks,
            num_host_blocks=4 * num_blocks,
            max_num_seqs=256,
            max_num_batched_tokens=512,
        )
        self._model = build_llama_3_8b()
        self._memories: dict[KVLayout, tuple[KVStore, KVStore, ModelRunner]] = {}

    @property
    def num_kv_tokens(self) -> int:
        """Tokens for which there is KV memory on the device."""
        return self._limits.num_blocks * BLOCK_SIZE

    def stage(self, arm: Arm) -> Stage:
        """Return an engine that switches as an arm does, with nothing to do yet."""
        clock = MonotonicClock()
        device, host, runner = self._memory("block_first" if arm.is_block_first else "layer_first")
        scheduler = build_scheduler(arm, self._limits, CudaTransfers(device, host, clock=clock))
        limits = ModelLimits(self.shape.max_tokens + 1, LLAMA_3_8B.vocab_size)
        engine = Engine(scheduler, runner, clock, limits, start=runner.start)
        return Stage(engine, clock, limits.vocab_size)

    def _memory(self, layout: KVLayout) -> tuple[KVStore, KVStore, ModelRunner]:
        """Return the memory of a layout, and what computes in it; pinning takes long, so all stay.

        Returns:
            The device's KV, the host's, and the executor.
        """
        if layout not in self._memories:
            device = make_store(self._limits.num_blocks, layout)
            host = make_store(self._limits.num_host_blocks, layout, "cpu", pinned=True)
            max_model_len, max_num_seqs = self.shape.max_tokens + 1, self._limits.max_num_seqs
            attention = build_attention(device)
            recordings = record(self._model, attention, device, max_num_seqs, max_model_len)
            self._memories[layout] = (
                device,
                host,
                build_runner(self._model, attention, device, recordings),
            )
        return self._memories[layout]
