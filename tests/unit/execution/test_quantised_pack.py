from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evenflow.core.errors import ConfigError
from evenflow.core.gguf_file import GGML_TYPES
from evenflow.execution.kernels import quantised
from evenflow.execution.kernels.quantised import Workspace, pack, quantised_linear
from evenflow.execution.ops import QuantisedRows
from support.kernel_sets import NATIVE_SETS, kernel_set
from support.quantised_rows import STORED_TYPES, dequantised, random_rows


@pytest.fixture(params=NATIVE_SETS)
def workspace(request: pytest.FixtureRequest) -> Workspace:
    kernels = kernel_set(request.param).quantised
    assert kernels is not None
    return Workspace(kernels)


@pytest.mark.parametrize("sane", [True, False], ids=["sane", "any-bytes"])
@pytest.mark.parametrize("name", STORED_TYPES)
def test_rows_of_a_packed_weight_are_the_stored_ones_bit_for_bit(
    workspace: Workspace, name: str, sane: bool
) -> None:
    stored = random_rows(name, 37, sane=sane)
    found = quantised_linear([stored], None, workspace).rows(torch.arange(37))
    np.testing.assert_array_equal(found.numpy(), dequantised(stored).numpy())  # NaN equals NaN


def test_rows_come_in_the_order_of_their_ids(workspace: Workspace) -> None:
    stored = random_rows("Q4_1", 70)
    ids = torch.tensor([69, 3, 3, 64, 0, 17] * 20)
    found = quantised_linear([stored], None, workspace).rows(ids)
    assert torch.equal(found, dequantised(stored)[ids])


def test_rows_take_ids_that_are_not_contiguous(workspace: Workspace) -> None:
    stored = random_rows("Q8_0", 40)
    ids = torch.arange(40)[::3]
    found = quantised_linear([stored], None, workspace).rows(ids)
    assert torch.equal(found, dequantised(stored)[ids])


def test_rows_of_no_ids_are_empty(workspace: Workspace) -> None:
    linear = quantised_linear([random_rows("Q4_0", 16)], None, workspace)
    assert linear.rows(torch.empty(0, dtype=torch.int64)).shape == (0, linear.in_features)


def test_pack_reads_rows_that_lie_apart(workspace: Workspace) -> None:
    stored = random_rows("Q5_1", 60)
    apart = QuantisedRows(stored.type, stored.rows[::2], stored.in_features)
    found = quantised_linear([apart], None, workspace).rows(torch.arange(30))
    assert torch.equal(found, dequantised(stored)[::2])


def test_pack_takes_a_weight_in_slices_as_at_once(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = random_rows("Q4_K", 70)
    at_once = pack(stored, workspace).tiles
    monkeypatch.setattr(quantised, "_SLICE_BYTES", 40 * stored.rows.stride(0))
    assert torch.equal(pack(stored, workspace).tiles, at_once)


def test_pack_gives_back_the_pages_of_a_mapped_weight_alone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[torch.Tensor] = []
    monkeypatch.setattr(quantised, "drop_pages", dropped.append)
    stored = random_rows("Q8_0", 33)
    pack(stored, workspace)
    assert dropped == []
    pack(replace(stored, is_mapped=True), workspace)
    assert torch.equal(torch.cat(dropped), stored.rows)


def test_pack_leaves_rows_that_the_last_tile_lacks_zero(workspace: Workspace) -> None:
    packed = pack(random_rows("Q8_0", 17), workspace)
    last_tile_codes = packed.tiles[1][: packed.in_features * 16].view(-1, 16, 4)
    assert last_tile_codes[:, 0].any()
    assert not last_tile_codes[:, 1:].any()


def test_pack_takes_no_more_memory_than_the_codes_and_scales(workspace: Workspace) -> None:
    stored = random_rows("Q4_1", 64)
    packed = pack(stored, workspace)
    assert stored.rows.numel() <= packed.tiles.numel() < stored.rows.numel() + 4 * 64


def test_pack_refuses_a_type_without_kernels(workspace: Workspace) -> None:
    stored = QuantisedRows(GGML_TYPES[10], torch.zeros(1, 84, dtype=torch.uint8), 256)
    with pytest.raises(ConfigError, match=r"Q2_K.*as they are stored") as caught:
        pack(stored, workspace)
    assert "Q4_K" in str(caught.value)
    assert "--linear exact" in str(caught.value)
