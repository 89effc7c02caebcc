"""Paged attention in Triton against the fp64 oracle, and its bits; interpreted without a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from support.triton_interpreter import DEVICE

# isort: split
from evenflow.core.errors import ConfigError
from evenflow.execution.attention import Rotation, merge_partials
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.kernels.reference import rotated
from evenflow.execution.kernels.triton.attention import TritonAttention
from evenflow.execution.kernels.triton.tiles import Tile, Tiles, choose_tiles
from evenflow.execution.torch.kv_store import KVStore
from support.attention_scenes import LAYER, Case, Scene, build, quarter_turns

# The logarithm of a sum of nothing is -inf, which numpy remarks on.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding to a dtype; for fp32 it is in the noise of the sums."""

# Small, so that short contexts have several tiles, splits and workers.
TILE = Tile(rows=32, keys=32, num_warps=4, num_stages=2)
SMALL = Tiles(prefill=TILE, decode=replace(TILE, rows=16), split_keys=64, programs_per_processor=64)
LONE_WORKER = replace(SMALL, programs_per_processor=1)

AWKWARD = ((1, 1), (15, 15), (16, 1), (17, 5), (33, 33), (127, 1), (127, 40))


def on_device(case: Case, dtype: torch.dtype = torch.float32) -> Case:
    return replace(case, dtype=dtype, activations=dtype, device=DEVICE)


def attend(scene: Scene, tiles: Tiles = SMALL) -> torch.Tensor:
    return scene.attend(TritonAttention(scene.store, tiles))


def assert_close(found: torch.Tensor, exact: torch.Tensor, scene: Scene) -> None:
    """Compare with fp64 on the same inputs.

    Weights of the values are rounded to their dtype: their errors average to one rounding of the
    largest value at most, and to half the smallest fp16 per key where weights vanish. The result is
    rounded once. Sums in fp32 over some hundred terms lose a few units of 2^-23.
    """
    rounding = ROUNDING[scene.case.dtype]
    largest = scene.store.values(LAYER).nan_to_num().abs().max().item()
    vanished = 2.0**-25 * 1000 if scene.case.dtype == torch.float16 else 0.0
    allowed = rounding * (largest + exact.abs()) + (vanished + 1e-6) * largest
    assert ((found.double() - exact).abs() <= allowed).all()


SHAPES = {
    "group_of_three": Case(AWKWARD, 1, 3, 64, 16),
    "no_groups": Case(((15, 15), (17, 1), (33, 9)), 2, 1, 64, 32),
    "head_dim_80": Case(((33, 17), (127, 1), (1, 1)), 1, 4, 80, 16),
    "head_dim_96": Case(((33, 17), (127, 1), (16, 16)), 1, 4, 96, 32, layout="layer_first"),
    "head_dim_128": Case(((127, 33), (16, 1)), 2, 2, 128, 16, layout="layer_first"),
    "head_dim_256": Case(((33, 17), (127, 1)), 1, 4, 256, 16),
    "head_dim_20": Case(((33, 17), (40, 1)), 1, 2, 20, 5),
    "wide_group": Case(((33, 3), (40, 1)), 1, 20, 64, 16),
    "partly_rotated": Case(((33, 17), (40, 1)), 2, 3, 64, 16, num_pairs=12),
    "window": Case(((127, 60), (127, 1), (9, 1), (40, 20)), 1, 2, 64, 16, window=33),
    "window_of_one": Case(((40, 30), (33, 1)), 1, 1, 64, 16, window=1),
    "contiguous": Case(((127, 20), (127, 1)), 1, 2, 64, 16, scattered=False),
}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES.keys())
def test_triton_attend_equals_fp64(case: Case, dtype: torch.dtype) -> None:
    scene = build(on_device(case, dtype))
    found = attend(scene)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert_close(found, scene.exact()[0], scene)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_triton_attend_equals_fp64_with_the_tiles_of_a_gpu(dtype: torch.dtype) -> None:
    scene = build(on_device(Case(((200, 70), (190, 1)), 1, 4, 128, 16), dtype))
    found = attend(scene, choose_tiles(128, dtype, (9, 0)))
    assert_close(found, scene.exact()[0], scene)


def test_triton_attend_reads_a_store_of_another_dtype_than_the_query() -> None:
    case = Case(((33, 9), (40, 1)), 1, 2, 64, 16, dtype=torch.bfloat16, device=DEVICE)
    scene = build(case)
    scene = replace(scene, q=scene.q.bfloat16().float())
    found = attend(scene)
    assert found.dtype == torch.float32
    assert_close(found, scene.exact()[0], scene)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_triton_attend_stores_keys_and_values_in_their_layer_only(dtype: torch.dtype) -> None:
    scene, expected = (build(on_device(SHAPES["window"], dtype)) for _ in range(2))
    attend(scene)
    expected.write()
    torch.testing.assert_close(
        scene.store.data, expected.store.data, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("num_pairs", [32, 12])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_triton_rotates_as_fp64_does_and_rounds_once(dtype: torch.dtype, num_pairs: int) -> None:
    scene = build(on_device(Case(((17, 5), (9, 1)), 2, 3, 64, 16, num_pairs=num_pairs), dtype))
    angles = torch.randn(6, num_pairs, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    rotation = Rotation((10 * angles).cos(), (10 * angles).sin())
    q, k = scene.q.clone(), scene.k.clone()
    attention = TritonAttention(scene.store, SMALL)
    attention.rotate_store(LAYER, q, k, scene.v, rotation, scene.batch)
    slots = scene.batch.slot_mapping
    stored = scene.store.keys(LAYER)[slots // 16, :, slots % 16]
    for found, before in [(q, scene.q), (stored, scene.k)]:
        exact = rotated(before.double(), rotation)
        allowed = (ROUNDING[dtype] + 4 * 2.0**-24) * exact.abs() + 4 * 2.0**-24 * exact.abs().max()
        assert ((found.double() - exact).abs() <= allowed).all()
    assert torch.equal(k, scene.k)


@pytest.mark.parametrize("name", ["no_groups", "window", "head_dim_80"])
def test_triton_partial_equals_fp64(name: str) -> None:
    scene = build(on_device(SHAPES[name]))
    attention = TritonAttention(scene.store, SMALL)
    for start, stop in [(0, 40), (13, 100), (64, 65)]:
        exact, exact_lse = scene.exact(start, stop)
        found, lse = scene.partial(attention, start, stop)
        assert_close(found, exact, scene)
        torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tiles", [SMALL, LONE_WORKER], ids=["workers", "lone_worker"])
def test_triton_partial_is_zero_and_minus_infinity_when_nothing_is_seen(tiles: Tiles) -> None:
    scene = build(on_device(SHAPES["no_groups"]))
    scene.exact()
    out, lse = scene.partial(TritonAttention(scene.store, tiles), 127, 200)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.isneginf(lse).all()


def test_triton_merged_partials_equal_fp64_over_everything() -> None:
    scene = build(on_device(SHAPES["head_dim_80"]))
    exact, exact_lse = scene.exact()
    attention = TritonAttention(scene.store, SMALL)
    parts = [scene.partial(attention, *cut) for cut in [(0, 17), (17, 100), (100, 1000)]]
    out, lse = merge_partials(*merge_partials(*parts[0], *parts[1]), *parts[2])
    assert_close(out, exact, scene)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["group_of_three", "window"])
def test_triton_bits_are_the_same_when_a_request_is_alone(name: str) -> None:
    case = on_device(SHAPES[name])
    together = build(case)
    out = attend(together)
    for row, request in enumerate(case.requests):
        alone = attend(build(replace(case, requests=(request,)), names=(row,)))
        assert torch.equal(alone, together.rows_of(out, row))


@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize("chunk", [2, 17])
def test_triton_bits_are_the_same_when_a_prefill_is_chunked(chunk: int, window: int | None) -> None:
    case = on_device(Case(((60, 60),), 1, 3, 64, 16, window=window))
    whole = attend(build(case))
    for start in range(0, 60 - chunk, max(chunk, 8)):
        stop = start + chunk
        part = attend(build(replace(case, requests=((stop, chunk),))))
        assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize("name", ["no_groups", "window", "head_dim_80"])
def test_triton_bits_are_the_same_for_one_worker_and_many(name: str) -> None:
    case = on_device(SHAPES[name])
    assert torch.equal(attend(build(case), LONE_WORKER), attend(build(case), SMALL))


@pytest.mark.parametrize(
    "change", [{"layout": "layer_first"}, {"scattered": False}, {"block_size": 32}]
)
def test_triton_bits_are_the_same_when_blocks_lie_elsewhere(change: dict[str, Any]) -> None:
    case = on_device(Case(((127, 20), (127, 1)), 1, 2, 64, 16))
    assert torch.equal(attend(build(case)), attend(build(replace(case, **change))))


@pytest.mark.parametrize("workers", [1, 64])
def test_triton_splits_grow_when_a_context_has_too_many(workers: int) -> None:
    tile = Tile(rows=16, keys=16, num_warps=4, num_stages=2)
    tiles = replace(SMALL, decode=tile, split_keys=16, max_splits=4, programs_per_processor=workers)
    # The second sees as many keys as three splits hold, but touches four.
    case = on_device(Case(((127, 1),), 1, 2, 64, 16))
    for scene in (build(case), build(replace(case, window=48))):
        assert_close(attend(scene, tiles), scene.exact()[0], scene)


@pytest.mark.parametrize("num_new", [1, 20])
def test_triton_ignores_positions_behind_the_window(num_new: int) -> None:
    scene = build(on_device(Case(((127, num_new),), 1, 2, 64, 16, window=33)))
    expected = attend(scene)
    unseen = (127 - num_new + 1 - 33) // 16
    scene.store.poison(scene.batch.block_tables[0, :unseen].tolist())
    assert torch.equal(attend(scene), expected)


def padded(batch: ForwardBatch, num_requests: int, num_blocks: int) -> ForwardBatch:
    """Add requests of one token that is not stored and sees nothing, and columns to the tables."""
    extra = num_requests - batch.num_requests
    pad = torch.nn.functional.pad
    return ForwardBatch(
        token_ids=pad(batch.token_ids, (0, extra)),
        positions=pad(batch.positions, (0, extra)),
        slot_mapping=pad(batch.slot_mapping, (0, extra), value=-1),
        query_starts=torch.arange(num_requests + 1, dtype=torch.int32, device=DEVICE),
        context_lens=pad(batch.context_lens, (0, extra)),
        block_tables=pad(batch.block_tables, (0, num_blocks, 0, extra)),
    )


@pytest.mark.parametrize("tiles", [SMALL, LONE_WORKER], ids=["workers", "lone_worker"])
def test_triton_attend_leaves_padded_requests_out(tiles: Tiles) -> None:
    case = on_device(Case(((17, 1), (127, 1)), 1, 2, 64, 16))
    plain, wide = build(case), build(case)
    expected = attend(plain, tiles)
    widened = [torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 2), value=5.0) for x in (wide.q, wide.k)]
    values = torch.nn.functional.pad(wide.v, (0, 0, 0, 0, 0, 2), value=5.0)
    batch = padded(wide.batch, 4, num_blocks=9)
    rotation = quarter_turns(case, batch.positions)
    scene = replace(wide, batch=batch, q=widened[0], k=widened[1], v=values, rotation=rotation)
    found = attend(scene, tiles)
    assert torch.equal(found[:2], expected)
    assert torch.equal(found[2:], torch.zeros_like(found[2:]))
    torch.testing.assert_close(wide.store.data, plain.store.data, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float64, 64), (torch.bfloat16, 512)])
def test_triton_attention_refuses_a_store_it_cannot_read(dtype: torch.dtype, head_dim: int) -> None:
    with pytest.raises(ConfigError, match=str(head_dim)):
        TritonAttention(KVStore(1, 1, 1, head_dim, 16, dtype=dtype))
