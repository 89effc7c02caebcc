from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from evenflow.config import load_config
from evenflow.core.errors import ConfigError
from evenflow.engine import backends
from evenflow.engine.backends import Backend, Machine, choose_backend
from evenflow.execution.kernels.cpu_attention import CpuPagedAttention
from evenflow.execution.kernels.cpu_kernels import portable_kernels
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.kernels.reference import ReferenceAttention
from evenflow.execution.torch.kv_store import KVStore
from evenflow.models.spec import ModelSpec, MoeSpec
from evenflow.models.weights.dummy import DummyWeights
from evenflow.models.weights.placed import PlacedWeights
from support.kernel_sets import kernel_set

SPEC = ModelSpec(
    architecture="qwen2",
    vocab_size=100,
    hidden_size=32,
    intermediate_size=48,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    attention_bias=True,
)
MOE = replace(SPEC, moe=MoeSpec(4, 2, 16, norm_topk_prob=True))
BARE = Machine()
T4 = Machine((7, 5), has_triton=True)
H100 = Machine((9, 0), has_triton=True)
WITH_FLASHINFER = Machine((9, 0), has_triton=True, has_flashinfer=True)

Choose = Callable[..., Backend]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Choose for a machine, with settings as flags; on a CPU without native kernels."""
    monkeypatch.setattr(backends, "cpu_kernels", lambda *_, **__: portable_kernels())

    def choose(machine: Machine, spec: ModelSpec = SPEC, **settings: Any) -> Backend:
        return choose_backend(load_config(settings, environ={}).config, spec, machine=machine)

    return choose


def test_auto_computes_in_float32_on_the_cpu_without_a_gpu(choose: Choose) -> None:
    backend = choose(BARE)
    assert backend.device == torch.device("cpu")
    assert (backend.dtype, backend.kv_dtype) == (torch.float32, torch.float32)
    assert backend.attention_name == "cpu"
    assert not backend.starts_ahead
    assert not backend.records_decode
    assert not backend.is_pinned


@pytest.mark.parametrize(
    ("settings", "is_quantised", "linear", "kv_dtype"),
    [
        ({}, True, "w4a8", torch.bfloat16),
        ({}, False, "exact", torch.float32),
        ({"linear": "w8a8"}, False, "w8a8", torch.bfloat16),
        ({"linear": "exact"}, True, "exact", torch.float32),
        ({"kv_cache_dtype": "fp32"}, True, "w4a8", torch.float32),
        ({"linear": "exact", "kv_cache_dtype": "bf16"}, True, "exact", torch.bfloat16),
        ({"kv_cache_dtype": "int8"}, True, "w4a8", torch.int8),
        ({"attention_backend": "reference"}, True, "w4a8", torch.float32),
    ],
)
def test_keys_and_values_are_rounded_on_the_cpu_where_activations_are(
    settings: dict[str, str], is_quantised: bool, linear: str, kv_dtype: torch.dtype
) -> None:
    kernels = kernel_set("native-portable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "cpu_kernels", lambda *_, **__: kernels)
        config = load_config(settings, environ={}).config
        backend = choose_backend(config, SPEC, is_quantised=is_quantised, machine=BARE)
    assert (backend.linear, backend.kv_dtype) == (linear, kv_dtype)
    assert backend.records_decode


def test_auto_takes_the_gpu_and_all_that_makes_it_fast(choose: Choose) -> None:
    backend = choose(H100)
    assert backend.device == torch.device("cuda")
    assert (backend.dtype, backend.kv_dtype) == (torch.bfloat16, torch.bfloat16)
    assert backend.attention_name == "triton"
    assert backend.starts_ahead
    assert backend.records_decode
    assert backend.is_pinned


def test_auto_stays_on_the_cpu_when_a_gpu_has_no_triton(choose: Choose) -> None:
    assert choose(Machine((9, 0))).device.type == "cpu"


def test_auto_is_float16_on_a_gpu_without_bfloat16(choose: Choose) -> None:
    assert choose(T4).dtype == torch.float16


@pytest.mark.parametrize(
    ("settings", "dtype", "kv_dtype"),
    [
        ({"dtype": "float16"}, torch.float16, torch.float16),
        ({"dtype": "float32"}, torch.float32, torch.float32),
        ({"kv_cache_dtype": "fp32"}, torch.bfloat16, torch.float32),
        ({"dtype": "float16", "kv_cache_dtype": "bf16"}, torch.float16, torch.bfloat16),
    ],
)
def test_keys_and_values_have_the_type_of_activations_unless_told_otherwise(
    choose: Choose, settings: dict[str, str], dtype: torch.dtype, kv_dtype: torch.dtype
) -> None:
    backend = choose(H100, **settings)
    assert (backend.dtype, backend.kv_dtype) == (dtype, kv_dtype)


def test_flashinfer_is_taken_when_it_is_installed_and_decode_is_still_recorded(
    choose: Choose,
) -> None:
    backend = choose(WITH_FLASHINFER)
    assert (backend.attention_name, backend.records_decode) == ("flashinfer", True)
    assert choose(WITH_FLASHINFER, attention_backend="triton").attention_name == "triton"
    assert choose(WITH_FLASHINFER, dtype="float32").attention_name == "triton"


@pytest.mark.parametrize(
    ("spec", "settings"),
    [(SPEC, {"enforce_eager": True}), (MOE, {}), (SPEC, {"attention_backend": "reference"})],
    ids=["told_so", "experts", "reference"],
)
def test_steps_that_the_host_must_follow_are_not_recorded(
    choose: Choose, spec: ModelSpec, settings: dict[str, Any]
) -> None:
    backend = choose(H100, spec, **settings)
    assert not backend.records_decode
    assert backend.starts_ahead


def test_steps_are_not_started_ahead_when_told_so(choose: Choose) -> None:
    assert not choose(H100, async_scheduling=False).starts_ahead


@pytest.mark.parametrize(
    ("machine", "settings", "fix"),
    [
        (BARE, {"device": "cuda"}, "--device cpu"),
        (Machine((9, 0)), {"device": "cuda"}, "pip install triton"),
        (BARE, {"dtype": "bfloat16"}, "Leave out --dtype"),
        (BARE, {"attention_backend": "triton"}, "--attention-backend auto"),
        (H100, {"device": "cpu", "attention_backend": "flashinfer"}, "--device cuda"),
        (H100, {"attention_backend": "cpu"}, "--device cpu"),
        (H100, {"attention_backend": "flashinfer"}, "--attention-backend triton"),
        (H100, {"linear": "w4a8"}, "--linear auto"),
        (H100, {"kv_cache_dtype": "int8"}, "--device cpu"),
        (T4, {"dtype": "bfloat16"}, "--dtype float16"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else None,
)
def test_settings_that_do_not_go_together_are_refused_with_a_way_out(
    choose: Choose, machine: Machine, settings: dict[str, str], fix: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        choose(machine, **settings)
    assert fix in raised.value.fix


def test_cpu_backend_builds_the_kernels_of_the_cpu(choose: Choose) -> None:
    backend = choose(BARE)
    store = KVStore(4, 1, 2, 16, 4)
    weights = DummyWeights(SPEC, seed=0)
    assert isinstance(backend.ops(), CpuOps)
    assert isinstance(backend.attention(store), CpuPagedAttention)
    assert backend.place(weights) is weights
    assert backend.linear == "exact"
    reference = choose(BARE, attention_backend="reference")
    assert isinstance(reference.attention(store), ReferenceAttention)


def test_placed_weights_round_matrices_and_leave_vectors_as_they_are() -> None:
    source = DummyWeights(SPEC, seed=0)
    placed = PlacedWeights(source, torch.device("cpu"), torch.bfloat16)
    assert placed.names() == source.names()
    for name in placed.names():
        values, expected = placed.tensor(name), source.tensor(name)
        assert placed.shape(name) == values.shape
        assert values.dtype == (torch.bfloat16 if expected.dim() == 2 else torch.float32)
        assert torch.equal(values, expected.to(values.dtype))
        assert placed.stored(name) is None
