from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest
import torch

from evenflow.execution.torch.kv_rows import KV_DTYPES, decode
from evenflow.execution.torch.kv_store import KVLayout, KVStore
from evenflow.memory.extents import Extent

LAYOUTS: list[KVLayout] = ["block_first", "layer_first"]


def filled(layout: KVLayout) -> KVStore:
    store = KVStore(5, 3, 2, 8, 4, layout)
    store.blocks.copy_(torch.arange(5 * 3 * 2 * 2 * 4 * 8).view(5, 3, 2, 2, 4, 8))
    return store


def test_store_is_shaped_by_its_layout() -> None:
    assert KVStore(5, 3, 2, 8, 4, "block_first").data.shape == (5, 3, 2, 2, 4, 8)
    assert KVStore(5, 3, 2, 8, 4, "layer_first").data.shape == (3, 2, 5, 2, 4, 8)


def test_store_keeps_a_block_contiguous_when_block_first() -> None:
    assert filled("block_first").blocks[2].is_contiguous()
    assert not filled("layer_first").blocks[2].is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_and_values_are_views_of_their_layer(layout: KVLayout) -> None:
    store = filled(layout)
    assert torch.equal(store.keys(1), store.blocks[:, 1, 0])
    store.values(2)[4, 1, 3, 7] = -1.0
    assert store.blocks[4, 2, 1, 1, 3, 7] == -1.0
    assert store.keys(0).shape == (5, 2, 4, 8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_write_puts_each_token_into_its_slot(layout: KVLayout) -> None:
    store = filled(layout)
    k, v = torch.randn(2, 2, 8), torch.randn(2, 2, 8)
    store.write(1, k, v, torch.tensor([4 * 3 + 2, 0]))
    assert torch.equal(store.keys(1)[3, :, 2], k[0])
    assert torch.equal(store.values(1)[0, :, 0], v[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copy_blocks_copies_all_layers_in_order(layout: KVLayout) -> None:
    store, before = filled(layout), filled(layout)
    store.copy_blocks([(0, 3), (3, 1)])
    assert torch.equal(store.blocks[3], before.blocks[0])
    assert torch.equal(store.blocks[1], before.blocks[0])
    assert torch.equal(store.blocks[[0, 2, 4]], before.blocks[[0, 2, 4]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_poison_fills_the_named_blocks_only(layout: KVLayout) -> None:
    store = filled(layout)
    store.poison([1, 4])
    assert torch.isnan(store.blocks[[1, 4]]).all()
    assert torch.isfinite(store.blocks[[0, 2, 3]]).all()


def test_poison_is_nan_where_entries_are_codes() -> None:
    store = KVStore(2, 1, 1, 8, 4, dtype=torch.int8)
    store.data.zero_()
    store.poison([1])
    assert torch.isnan(decode(store.keys(0)[1])).all()
    assert torch.equal(decode(store.keys(0)[0]), torch.zeros(1, 4, 8))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_are_the_contiguous_memory_of_a_run_in_the_order_of_its_layers(
    layout: KVLayout,
) -> None:
    store = filled(layout)
    pieces = store.pieces(Extent(1, 3))
    assert len(pieces) == store.num_pieces == (1 if layout == "block_first" else 6)
    assert all(piece.is_contiguous() for piece in pieces)
    joined = pieces[0] if layout == "block_first" else torch.stack(list(pieces), dim=1)
    assert torch.equal(joined.flatten(), store.blocks[1:4].flatten())
    pieces[-1][-1].fill_(-1.0)
    assert store.values(2)[3, 1, 3, 7] == -1.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_addresses_are_where_the_pieces_of_a_block_begin(layout: KVLayout) -> None:
    store = filled(layout)
    pieces = [ctypes.string_at(address, store.piece_bytes) for address in store.addresses(3)]
    assert b"".join(pieces) == store.blocks[3].contiguous().numpy().tobytes()


@pytest.mark.parametrize("dtype", KV_DTYPES.values())
def test_bytes_per_block_times_blocks_is_what_the_store_takes(dtype: torch.dtype) -> None:
    store = KVStore(5, 3, 2, 8, 4, dtype=dtype)
    taken = store.data.numel() * store.data.element_size()
    assert 5 * KVStore.bytes_per_block(3, 2, 8, 4, dtype) == taken


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_store_takes_memory_only_where_it_is_touched() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = resident_bytes()
    store = KVStore(1 << 14, 4, 2, 64, 16)  # 1 GiB reserved
    store.keys(3)[10_000] = 2.0
    assert resident_bytes() - before < 1 << 28
