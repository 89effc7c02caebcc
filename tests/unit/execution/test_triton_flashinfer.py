"""What FlashInfer is asked for, by a stand-in that answers with the oracle."""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from support.triton_interpreter import DEVICE

# isort: split
from evenflow.core.errors import ConfigError
from evenflow.execution.kernels.triton import flashinfer
from evenflow.execution.kernels.triton.flashinfer import FlashInferAttention
from evenflow.execution.torch.kv_store import KVStore
from support.attention_scenes import Case, Scene, build

CASE = Case(
    ((33, 17), (48, 1), (16, 16)),
    num_kv_heads=1,
    group_size=2,
    head_dim=64,
    block_size=16,
    dtype=torch.float16,
    activations=torch.float16,
    device=DEVICE,
)
DECODE = replace(CASE, requests=((33, 1), (48, 1)))


class Wrapper:
    """Attends over pages slowly, from what it was planned with."""

    def __init__(self, workspace: torch.Tensor, layout: str, **options: Any) -> None:
        assert layout == "HND"
        self.options = options
        self.plans: list[dict[str, Any]] = []

    def plan(self, **plan: Any) -> None:
        self.plans.append(plan)

    def run(self, q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        plan = self.plans[-1]
        out = torch.zeros_like(q)
        starts = self.query_starts(plan)
        for request, (page, stop) in enumerate(pairwise(self.pages(plan))):
            ids = self.ids(plan)[page:stop].long()
            length = (stop - page - 1) * plan["page_size"] + self.last_lens(plan)[request]
            k, v = (part[ids].transpose(1, 2).flatten(0, 1)[:length, 0].double() for part in cache)
            rows = slice(starts[request], starts[request + 1])
            last = torch.arange(length - (rows.stop - rows.start), length).view(-1, 1, 1)
            where = torch.arange(length)
            hidden = where > last
            if plan["window_left"] >= 0:
                hidden |= where < last - plan["window_left"]
            scores = torch.einsum("qhd,kd->qhk", q[rows].double(), k) * plan["sm_scale"]
            weights = scores.masked_fill(hidden.to(q.device), -torch.inf).softmax(-1)
            out[rows] = torch.einsum("qhk,kd->qhd", weights, v).to(q.dtype)
        return out


class Decode(Wrapper):
    def query_starts(self, plan: dict[str, Any]) -> list[int]:
        return list(range(len(self.pages(plan))))

    def pages(self, plan: dict[str, Any]) -> list[int]:
        return plan["indptr"].tolist()

    def ids(self, plan: dict[str, Any]) -> torch.Tensor:
        return plan["indices"]

    def last_lens(self, plan: dict[str, Any]) -> list[int]:
        return plan["last_page_len"].tolist()


class Prefill(Wrapper):
    def query_starts(self, plan: dict[str, Any]) -> list[int]:
        assert plan["causal"]
        return plan["qo_indptr"].tolist()

    def pages(self, plan: dict[str, Any]) -> list[int]:
        return plan["paged_kv_indptr"].tolist()

    def ids(self, plan: dict[str, Any]) -> torch.Tensor:
        return plan["paged_kv_indices"]

    def last_lens(self, plan: dict[str, Any]) -> list[int]:
        return plan["paged_kv_last_page_len"].tolist()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("flashinfer")
    module.__spec__ = importlib.util.spec_from_loader("flashinfer", loader=None)
    module.BatchDecodeWithPagedKVCacheWrapper = Decode  # type: ignore[attr-defined]
    module.BatchPrefillWithPagedKVCacheWrapper = Prefill  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr(flashinfer, "_WORKSPACE_BYTES", 16)


def assert_exact(scene: Scene, found: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), scene.exact()[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", ["block_first", "layer_first"])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("case", [CASE, DECODE], ids=["ragged", "decode"])
def test_flashinfer_is_planned_for_the_batch(
    library: None, case: Case, window: int | None, layout: Any
) -> None:
    scene = build(replace(case, window=window, layout=layout))
    assert_exact(scene, scene.attend(FlashInferAttention(scene.store)))


def test_flashinfer_is_planned_once_per_batch_and_kind_of_layer(library: None) -> None:
    scene = build(CASE)
    attention = FlashInferAttention(scene.store)
    first = scene.attend(attention)
    other = replace(scene, case=replace(CASE, window=20))
    other.attend(attention)
    assert torch.equal(scene.attend(attention), first)
    assert [len(wrapper.plans) for wrapper in attention._wrappers.values()] == [1, 1]
    replace(scene, batch=replace(scene.batch)).attend(attention)
    assert [len(wrapper.plans) for wrapper in attention._wrappers.values()] == [2, 1]


def test_flashinfer_partial_may_cut_a_block(library: None) -> None:
    scene = build(CASE)
    exact, exact_lse = scene.exact(3, 21)
    found, lse = scene.partial(FlashInferAttention(scene.store), 3, 21)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


def test_flashinfer_stores_keys_and_values(library: None) -> None:
    scene, expected = build(CASE), build(CASE)
    scene.attend(FlashInferAttention(scene.store))
    expected.write()
    torch.testing.assert_close(
        scene.store.data, expected.store.data, rtol=0, atol=0, equal_nan=True
    )


def test_flashinfer_refuses_a_store_of_fp32(library: None) -> None:
    with pytest.raises(ConfigError, match="float32"):
        FlashInferAttention(KVStore(1, 1, 1, 64, 16))


def test_flashinfer_says_how_to_get_it_when_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flashinfer, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="not installed"):
        FlashInferAttention(KVStore(1, 1, 1, 64, 16, dtype=torch.float16))
