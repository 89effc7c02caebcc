"""Rows of a KV store: what comes back out of what was put in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evenflow.execution.torch.kv_rows import decode, encode, row_width

EXPONENTS = st.integers(-90, 100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_floats_are_kept_in_the_type_of_the_store(dtype: torch.dtype) -> None:
    entries = torch.randn(3, 2, 8)
    rows = encode(entries, dtype)
    assert rows.shape[-1] == row_width(8, dtype) == 8
    assert torch.equal(decode(rows), entries.to(dtype))


@given(seed=st.integers(0, 1 << 30), exponent=EXPONENTS, head_dim=st.sampled_from([1, 7, 64]))
def test_codes_are_off_by_half_a_step_at_most(seed: int, exponent: int, head_dim: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randn(5, head_dim, generator=generator) * 2.0**exponent
    rows = encode(entries, torch.int8)
    assert rows.shape == (5, row_width(head_dim, torch.int8))
    step = entries.double().abs().amax(-1, keepdim=True) / 127
    off = (decode(rows).double() - entries).abs()
    assert (off <= step * (0.5 + 1e-4)).all()


def test_the_largest_entry_comes_back_and_zero_stays_zero() -> None:
    entries = torch.tensor([[0.0, -2.54, 1.0], [0.0, 0.0, 0.0]])
    found = decode(encode(entries, torch.int8))
    torch.testing.assert_close(found[0, :2], entries[0, :2])
    assert torch.equal(found[1], entries[1])


def test_a_lone_row_is_decoded_wherever_it_lies() -> None:
    rows = encode(torch.randn(3, 5), torch.int8)
    assert torch.equal(decode(rows[1:2]), decode(rows)[1:2])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_with_a_number_that_is_none_is_nan_and_its_neighbours_are_not(bad: float) -> None:
    entries = torch.ones(3, 4)
    entries[1, 2] = bad
    found = decode(encode(entries, torch.int8))
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], entries[[0, 2]])
