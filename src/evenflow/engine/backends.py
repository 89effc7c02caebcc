"""Chooses where and in what a model computes, and with which kernels.

              device   dtype               KV       attention                        steps
    CPU       cpu      float32             fp32,    cpu, reference                   recorded
                                           bf16,
                                           int8
    CUDA      cuda     bfloat16, float16,  the      triton, flashinfer, reference    started ahead,
                       float32             same                                      as CUDA graphs

FlashInfer plans each batch on the host, which no graph can repeat: it takes the steps that compute
prompts, and recorded decode steps attend by Triton.

Knows: what goes together, and what a machine must have for it.
Does not know: how anything is computed. The modules of a device are imported when it is chosen.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import torch

from evenflow.config import EvenflowConfig
from evenflow.config.execution import ExecutionConfig
from evenflow.core.errors import ConfigError
from evenflow.engine.free_memory import free_memory_bytes
from evenflow.execution.attention import Attention
from evenflow.execution.kernels.cpu_kernels import CpuKernels, cpu_kernels
from evenflow.execution.kernels.parallel import ThreadTeam
from evenflow.execution.model import CausalLM
from evenflow.execution.ops import Ops
from evenflow.execution.torch.decode_recordings import DecodeRecordings, Recorder, powers_of_two
from evenflow.execution.torch.kv_rows import KV_DTYPES
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.model_runner import ModelRunner
from evenflow.execution.torch.sampler import Sample, sample
from evenflow.models.spec import ModelSpec
from evenflow.models.weights.placed import PlacedWeights
from evenflow.models.weights.precision import Precision, resolve_linear
from evenflow.models.weights.source import WeightSource

AttentionName = Literal["cpu", "triton", "flashinfer", "reference"]

_BFLOAT16_CAPABILITY = (8, 0)
_MOST_RECORDED = 64  # requests; with more of them, kernels are long and launching them is not
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(slots=True, frozen=True)
class Machine:
    """What there is to compute with.

    Attributes:
        capability: of the CUDA device, as (major, minor); None without one.
        has_triton: whether Triton can be imported.
        has_flashinfer: whether FlashInfer can be imported.
    """

    capability: tuple[int, int] | None = None
    has_triton: bool = False
    has_flashinfer: bool = False

    @classmethod
    def here(cls) -> Machine:
        """Look around."""
        has_cuda = torch.cuda.is_available()
        return cls(
            torch.cuda.get_device_capability() if has_cuda else None,
            importlib.util.find_spec("triton") is not None,
            importlib.util.find_spec("flashinfer") is not None,
        )


@dataclass(slots=True, frozen=True)
class Backend:
    """Where and in what a model computes.

    Attributes:
        device: where.
        dtype: of matrices and activations.
        kv_dtype: of keys and values.
        linear: how weights are held and multiplied.
        attention_name: which kernels attend.
        kernels: on a CPU, which others are used; None on a GPU.
        starts_ahead: whether the engine may start a step before the one before it is finished.
        records_decode: whether decode steps are recorded and replayed.
        team: on a CPU, the threads that kernels run on.
    """

    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    attention_name: AttentionName
    linear: Precision = "exact"
    kernels: CpuKernels | None = None
    starts_ahead: bool = False
    records_decode: bool = False
    team: ThreadTeam = field(default_factory=ThreadTeam)

    @property
    def is_pinned(self) -> bool:
        """Whether KV on the host has to be in pinned memory."""
        return self.device.type == "cuda"

    def free_bytes(self) -> int:
        """Return the bytes that can be had where the model computes."""
        if self.device.type == "cpu":
            return free_memory_bytes()
        return torch.cuda.mem_get_info(self.device)[0]

    def ops(self) -> Ops:
        """Build the operations that models are made of."""
        if self.device.type == "cpu":
            from evenflow.execution.kernels.cpu_ops import CpuOps

            return CpuOps(self.kernels, self.team)
        from evenflow.execution.kernels.triton.triton_ops import TritonOps

        return TritonOps()

    def place(self, weights: WeightSource) -> WeightSource:
        """Return the same weights where and in what the model computes."""
        if self.device.type == "cpu":
            return weights
        return PlacedWeights(weights, self.device, self.dtype)

    def attention(self, store: KVStore) -> Attention:
        """Build attention over a KV store."""
        if self.attention_name == "cpu":
            from evenflow.execution.kernels.cpu_attention import CpuPagedAttention

            return CpuPagedAttention(store, self.kernels, self.team)
        if self.attention_name == "triton":
            return _triton_attention(store)
        if self.attention_name == "flashinfer":
            from evenflow.execution.kernels.triton.flashinfer import FlashInferAttention

            return FlashInferAttention(store)
        from evenflow.execution.kernels.reference import ReferenceAttention

        return ReferenceAttention(store)

    def runner(
        self, model: CausalLM, store: KVStore, *, max_num_seqs: int, max_model_len: int
    ) -> ModelRunner:
        """Build the executor; on a GPU it may record graphs now, which takes seconds.

        Args:
            model: built with `ops` and weights from `place`.
            store: on `device`, in `kv_dtype`.
            max_num_seqs: most requests in a step.
            max_model_len: most tokens of a request.
        """
        attention = self.attention(store)
        on_cpu = self.device.type == "cpu"
        recordings = None
        if self.records_decode:
            recorded = attention if on_cpu else _triton_attention(store)
            recordings = DecodeRecordings(
                lambda batch: model.forward(batch, recorded),
                sizes=_cpu_sizes(max_num_seqs) if on_cpu else powers_of_two(max_num_seqs),
                max_num_blocks=-(-max_model_len // store.block_size),
                device=self.device,
                record=self._recorder(),
            )
            if not on_cpu:
                recordings.record_all()
        draw = sample if on_cpu else _device_sample()
        return ModelRunner(model, attention, store, sample=draw, recordings=recordings)

    def _recorder(self) -> Recorder:
        if self.kernels is not None and self.kernels.replay is not None:
            from evenflow.execution.kernels.cpu_recorder import CpuRecorder

            return CpuRecorder(self.team, self.kernels.replay)
        from evenflow.execution.torch.cuda_recorder import CudaRecorder

        return CudaRecorder(self.device)


def choose_backend(
    config: EvenflowConfig,
    spec: ModelSpec,
    *,
    is_quantised: bool = False,
    machine: Machine | None = None,
) -> Backend:
    """Choose what the settings ask for, and of what they leave open the fastest.

    Args:
        config: the settings.
        spec: the model.
        is_quantised: whether the model's file holds weights of a few bits.
        machine: what there is; this machine by default.

    Raises:
        ConfigError: the settings contradict each other, or the machine lacks something.
    """
    machine = Machine.here() if machine is None else machine
    settings = config.execution
    device = settings.device
    if device == "auto":
        device = "cuda" if machine.capability is not None and machine.has_triton else "cpu"
    if device == "cpu":
        return _cpu_backend(config, is_quantised=is_quantised)
    return _cuda_backend(config, spec, machine)


def _cpu_backend(config: EvenflowConfig, *, is_quantised: bool) -> Backend:
    settings = config.execution
    if settings.dtype not in ("auto", "float32"):
        _refuse(
            f"--dtype {settings.dtype} cannot be had on a CPU",
            why="weights and activations are float32 there",
            fix="Leave out --dtype, or set --device cuda. --linear w4a8 makes a model smaller",
        )
    name = settings.attention_backend
    if name in ("triton", "flashinfer"):
        _refuse(
            f"--attention-backend {name} cannot be had on a CPU",
            why="its kernels run on a CUDA GPU",
            fix="Set --attention-backend auto, or --device cuda where there is one",
        )
    attention: AttentionName = "reference" if name == "reference" else "cpu"
    kernels = cpu_kernels("auto", cache=config.paths.cache / "native")
    linear = resolve_linear(
        settings.linear,
        is_quantised=is_quantised,
        has_native_kernels=kernels.quantised is not None,
    )
    # Rounding keys and values loses less than rounding activations to 8 bits does.
    halves_kv = linear != "exact" and "bf16" in kernels.kv_types and attention == "cpu"
    kv_dtype = torch.bfloat16 if halves_kv else torch.float32
    return Backend(
        torch.device("cpu"),
        torch.float32,
        KV_DTYPES.get(config.cache.kv_cache_dtype, kv_dtype),
        attention,
        linear,
        kernels=kernels,
        records_decode=kernels.replay is not None and not settings.enforce_eager,
    )


def _cuda_backend(config: EvenflowConfig, spec: ModelSpec, machine: Machine) -> Backend:
    settings = config.execution
    if machine.capability is None:
        _refuse(
            "--device cuda cannot be had",
            why="torch finds no CUDA device",
            fix="Set --device cpu, or install a torch build for CUDA and the GPU's driver",
        )
    if not machine.has_triton:
        _refuse(
            "--device cuda cannot be had",
            why="the kernels are written in Triton, which is not installed",
            fix="Run pip install triton, or set --device cpu",
        )
    if settings.linear != "auto":
        _refuse(
            f"--linear {settings.linear} cannot be had on a GPU",
            why="matrix products there are those of --dtype",
            fix="Set --linear auto, or --device cpu",
        )
    if config.cache.kv_cache_dtype == "int8" and settings.attention_backend != "reference":
        _refuse(
            "--kv-cache-dtype int8 cannot be had on a GPU",
            why="the kernels there read keys and values of 16 or 32 bits",
            fix="Leave out --kv-cache-dtype, or set --device cpu",
        )
    dtype = _cuda_dtype(settings, machine.capability)
    kv_dtype = KV_DTYPES.get(config.cache.kv_cache_dtype, dtype)
    attention = _cuda_attention(settings, machine, kv_dtype)
    return Backend(
        torch.device("cuda"),
        dtype,
        kv_dtype,
        attention,
        starts_ahead=settings.async_scheduling,
        # The host reads which experts tokens go to, and the reference reads lengths.
        records_decode=attention != "reference" and spec.moe is None and not settings.enforce_eager,
    )


def _cuda_dtype(settings: ExecutionConfig, capability: tuple[int, int]) -> torch.dtype:
    has_bfloat16 = capability >= _BFLOAT16_CAPABILITY
    if settings.dtype == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float16
    if settings.dtype == "bfloat16" and not has_bfloat16:
        _refuse(
            "--dtype bfloat16 cannot be had on this GPU",
            why=f"its compute capability is {capability[0]}.{capability[1]}, and that takes 8.0",
            fix="Set --dtype float16",
        )
    return _DTYPES[settings.dtype]


def _cuda_attention(
    settings: ExecutionConfig, machine: Machine, kv_dtype: torch.dtype
) -> AttentionName:
    name = settings.attention_backend
    if name == "auto":
        # FlashInfer reads keys and values of 16 bits only.
        return "flashinfer" if machine.has_flashinfer and kv_dtype.itemsize == 2 else "triton"
    if name == "cpu":
        _refuse(
            "--attention-backend cpu cannot be had on a GPU",
            why="keys and values are in the GPU's memory",
            fix="Set --attention-backend auto, or --device cpu",
        )
    if name == "flashinfer" and not machine.has_flashinfer:
        _refuse(
            "--attention-backend flashinfer cannot be had",
            why="FlashInfer is not installed",
            fix="Run pip install flashinfer-python, or set --attention-backend triton",
        )
    return name


def _cpu_sizes(max_num_seqs: int) -> range:
    """Return batch sizes to record on a CPU: all, since rows of padding would cost as much."""
    return range(1, min(max_num_seqs, _MOST_RECORDED) + 1)


def _triton_attention(store: KVStore) -> Attention:
    from evenflow.execution.kernels.triton.attention import TritonAttention

    return TritonAttention(store)


def _device_sample() -> Sample:
    from evenflow.execution.torch.device_sampler import sample_on_device

    return sample_on_device


def _refuse(what: str, *, why: str, fix: str) -> NoReturn:
    raise ConfigError(what, why=why, fix=fix)
