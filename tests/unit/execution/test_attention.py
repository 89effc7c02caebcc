"""Attention over every set of CPU kernels against the slow oracle, and its bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from evenflow.core.errors import ConfigError
from evenflow.execution.attention import Attention, merge_partials
from evenflow.execution.kernels.attention_job import KV_TYPES
from evenflow.execution.kernels.cpu_attention import CpuPagedAttention
from evenflow.execution.kernels.reference import ReferenceAttention, rotated
from evenflow.execution.torch.kv_rows import KV_DTYPES
from evenflow.execution.torch.kv_store import KVStore
from support.attention_scenes import Case, Scene, build
from support.kernel_sets import KERNEL_SETS, kernel_set

# Over int8 keys and values, queries are rounded by up to 1/8192 of their largest entry, and weights
# by 1/32512: scores are off by some 0.0005, and so are results.
ABSOLUTE = {"fp32": 2e-6, "bf16": 2e-6, "int8": 2e-3}

Make = Callable[[KVStore], Attention]
Near = Callable[[torch.Tensor, torch.Tensor], None]

CASES = {
    "decode": Case(((1, 1), (16, 1), (37, 1), (300, 1)), 3, 3, 64, 16),
    "prefill": Case(((150, 150),), 3, 3, 64, 16),
    "ragged": Case(((37, 1), (300, 20), (90, 90), (1, 1), (70, 7)), 3, 3, 64, 16),
    "one_head_each": Case(((37, 37), (300, 9), (20, 1)), 2, 1, 8, 4),
    "many_heads_per_group": Case(((70, 10), (90, 1)), 2, 8, 80, 32),
    "wide_heads": Case(((200, 100), (130, 1)), 1, 4, 256, 32),
    "odd_head_dim": Case(((70, 10), (90, 1)), 1, 2, 20, 5),
    "odder_head_dim": Case(((70, 10), (90, 1)), 2, 3, 37, 5),
    "seventy_one_heads_per_group": Case(((40, 3), (50, 1)), 1, 71, 24, 16),
    "partly_rotated": Case(((70, 10), (90, 1)), 2, 3, 64, 16, num_pairs=12),
    "window": Case(((70, 10), (400, 60), (300, 1)), 2, 3, 64, 16, window=33),
    "window_shorter_than_a_tile": Case(((120, 70), (9, 1)), 2, 1, 16, 4, window=3),
    "window_of_one": Case(((40, 30),), 1, 1, 16, 4, window=1),
    "layer_first": Case(((37, 1), (300, 20)), 3, 3, 64, 16, layout="layer_first"),
    "contiguous": Case(((37, 1), (300, 20)), 3, 3, 64, 16, scattered=False),
    "long": Case(((1000, 2), (900, 1)), 1, 3, 64, 16),
    "widest_heads": Case(((70, 9), (50, 1)), 1, 2, 1024, 16),
}


@pytest.fixture(
    params=[
        (kernels, dtype)
        for kernels in KERNEL_SETS
        for dtype in KV_TYPES
        if kernels != "numba" or dtype == "fp32"
    ],
    ids="-".join,
)
def choice(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Names of a set of kernels and of the type its KV store has."""
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def make(choice: tuple[str, str]) -> Make:
    """Make the attention under test over a store."""
    kernels = kernel_set(choice[0])
    return lambda store: CpuPagedAttention(store, kernels)


@pytest.fixture
def cases(choice: tuple[str, str]) -> dict[str, Case]:
    """The cases, with a store of the type under test."""
    return {name: replace(case, dtype=KV_DTYPES[choice[1]]) for name, case in CASES.items()}


@pytest.fixture
def assert_near(choice: tuple[str, str]) -> Near:
    """Compare with the reference, as exactly as the type under test allows."""
    return partial(torch.testing.assert_close, rtol=1e-5, atol=ABSOLUTE[choice[1]])


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_reference_equals_torch_attention_when_prefilling() -> None:
    scene = build(Case(((50, 50),), 2, 3, 16, 4))
    keys = rotated(scene.k, scene.rotation)
    q, k, v = (part.transpose(0, 1).double() for part in (scene.turned_q, keys, scene.v))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    found = scene.attend(ReferenceAttention(scene.store))
    torch.testing.assert_close(found, expected.transpose(0, 1).float())


@pytest.mark.parametrize("name", CASES)
def test_attend_equals_reference(
    make: Make, cases: dict[str, Case], name: str, assert_near: Near
) -> None:
    scene = build(cases[name])
    found = scene.attend(make(scene.store))
    expected = build(cases[name]).attend(ReferenceAttention(scene.store))
    assert_near(found, expected)


def test_attend_stores_keys_and_values_in_their_layer_only(
    make: Make, cases: dict[str, Case]
) -> None:
    scene = build(cases["ragged"])
    expected = build(cases["ragged"])
    scene.attend(make(scene.store))
    expected.write()
    torch.testing.assert_close(
        scene.store.data, expected.store.data, rtol=0, atol=0, equal_nan=True
    )


def test_reference_does_not_store_a_token_without_a_slot() -> None:
    scene = build(CASES["ragged"])
    before = scene.store.data.clone()
    scene.batch.slot_mapping.fill_(-1)
    scene.attend(ReferenceAttention(scene.store))
    torch.testing.assert_close(scene.store.data, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["ragged", "window", "wide_heads", "long", "odder_head_dim"])
def test_partial_equals_reference(
    make: Make, cases: dict[str, Case], name: str, assert_near: Near
) -> None:
    scene = build(cases[name])
    expected_from = ReferenceAttention(scene.store)
    scene.attend(expected_from)
    for start, stop in [(0, 40), (13, 290), (64, 65), (280, 1000)]:
        found, lse = scene.partial(make(scene.store), start, stop)
        expected, expected_lse = scene.partial(expected_from, start, stop)
        assert_near(found, expected)
        assert_near(lse, expected_lse)


def test_partial_is_zero_and_minus_infinity_when_nothing_is_seen(
    make: Make, cases: dict[str, Case]
) -> None:
    scene = build(cases["decode"])
    scene.attend(ReferenceAttention(scene.store))
    out, lse = scene.partial(make(scene.store), 37, 40)
    assert torch.equal(out[:3], torch.zeros_like(out[:3]))
    assert torch.isneginf(lse[:3]).all()
    assert torch.isfinite(lse[3:]).all()


def test_merged_partials_equal_attention_over_everything(
    make: Make, cases: dict[str, Case], assert_near: Near
) -> None:
    scene = build(cases["ragged"])
    attention = make(scene.store)
    whole = scene.attend(attention)
    parts = [scene.partial(attention, *cut) for cut in [(0, 17), (17, 250), (250, 1000)]]
    left = merge_partials(*merge_partials(*parts[0], *parts[1]), *parts[2])
    right = merge_partials(*parts[0], *merge_partials(*parts[1], *parts[2]))
    assert_near(left[0], whole)
    torch.testing.assert_close(left, right, rtol=1e-5, atol=2e-6)


def rows_of(scene: Scene, out: torch.Tensor, row: int) -> torch.Tensor:
    starts = scene.batch.query_starts.tolist()
    return out[starts[row] : starts[row + 1]]


@pytest.mark.parametrize("name", ["ragged", "window", "wide_heads", "long", "one_head_each"])
def test_bits_are_the_same_when_a_request_is_alone(
    make: Make, cases: dict[str, Case], name: str
) -> None:
    scene = build(cases[name])
    together = scene.attend(make(scene.store))
    for row, request in enumerate(scene.case.requests):
        lone = build(replace(scene.case, requests=(request,)), names=(row,))
        assert torch.equal(lone.attend(make(lone.store)), rows_of(scene, together, row))


@pytest.mark.parametrize(
    "name", ["ragged", "window", "window_shorter_than_a_tile", "wide_heads", "odder_head_dim"]
)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_bits_are_the_same_when_a_prefill_is_chunked(
    make: Make, cases: dict[str, Case], name: str, chunk: int
) -> None:
    whole = build(replace(cases[name], requests=((150, 150),)))
    expected = whole.attend(make(whole.store))
    # Lone tokens at every place in a block and in a tile, but not all of them.
    for start in range(0, 150, max(chunk, 7)):
        stop = min(start + chunk, 150)
        part = build(replace(cases[name], requests=((stop, stop - start),)))
        assert torch.equal(part.attend(make(part.store)), expected[start:stop])


@pytest.mark.parametrize(
    "change", [{"layout": "layer_first"}, {"scattered": False}, {"block_size": 4}]
)
def test_bits_are_the_same_when_blocks_lie_elsewhere(
    make: Make, cases: dict[str, Case], change: dict[str, object]
) -> None:
    scene = build(cases["ragged"])
    other = build(replace(cases["ragged"], **change))  # type: ignore[arg-type]
    assert torch.equal(scene.attend(make(scene.store)), other.attend(make(other.store)))


@pytest.mark.parametrize("name", ["ragged", "long", "wide_heads"])
def test_bits_are_the_same_for_one_thread_and_two(
    make: Make, cases: dict[str, Case], name: str
) -> None:
    scene = build(cases[name])
    attention = make(scene.store)
    parallel = scene.attend(attention)
    torch.set_num_threads(1)
    assert torch.equal(scene.attend(attention), parallel)


def test_positions_behind_the_window_are_ignored(make: Make, cases: dict[str, Case]) -> None:
    case = replace(cases["window"], requests=((300, 1),))
    scene = build(case)
    expected = scene.attend(make(scene.store))
    scene.store.poison(scene.batch.block_tables[0, : (300 - 33) // case.block_size].tolist())
    assert torch.equal(scene.attend(make(scene.store)), expected)


@pytest.mark.parametrize("part", ["k", "v"])
def test_nan_stays_in_the_rows_that_see_it(make: Make, cases: dict[str, Case], part: str) -> None:
    scene = build(cases["prefill"])
    expected = scene.attend(make(scene.store))
    getattr(scene, part)[100] = torch.nan
    found = scene.attend(make(scene.store))
    assert torch.equal(found[:100], expected[:100])
    assert torch.isnan(found[100:]).all()


def test_nan_of_a_value_shows_even_where_its_weight_is_zero(
    make: Make, cases: dict[str, Case]
) -> None:
    scene = build(cases["prefill"])
    scene.q.mul_(1000)  # scores so far apart that most weights are zero
    expected = scene.attend(make(scene.store))
    scene.v[100] = torch.nan
    found = scene.attend(make(scene.store))
    assert torch.equal(found[:100], expected[:100])
    assert torch.isnan(found[100:]).all()


@pytest.mark.parametrize("dtype", KV_TYPES)
def test_bits_of_avx2_and_avx512_are_the_same(dtype: str) -> None:
    found = []
    for name in ("native-avx2", "native-avx512"):
        scene = build(replace(CASES["ragged"], dtype=KV_DTYPES[dtype]))
        found.append(scene.attend(CpuPagedAttention(scene.store, kernel_set(name))))
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_portable_kernels_refuse_a_narrow_store(dtype: str) -> None:
    with pytest.raises(ConfigError, match="--kv-cache-dtype fp32"):
        CpuPagedAttention(KVStore(1, 1, 1, 8, 4, dtype=KV_DTYPES[dtype]))


def test_native_kernels_refuse_int8_heads_whose_sums_would_overflow() -> None:
    store = KVStore(1, 1, 1, 1025, 4, dtype=torch.int8)
    with pytest.raises(ConfigError, match="--kv-cache-dtype bf16"):
        CpuPagedAttention(store, kernel_set("native-portable"))


def test_cpu_refuses_a_store_of_another_type() -> None:
    with pytest.raises(ConfigError, match=r"torch\.float16"):
        CpuPagedAttention(KVStore(1, 1, 1, 8, 4, dtype=torch.float16))


def test_merge_partials_ignores_the_side_that_saw_nothing() -> None:
    out, lse = torch.randn(4, 8), torch.randn(4)
    nothing = torch.zeros(4, 8), torch.full((4,), -torch.inf)
    torch.testing.assert_close(merge_partials(out, lse, *nothing), (out, lse))
    torch.testing.assert_close(merge_partials(*nothing, *nothing), nothing)
