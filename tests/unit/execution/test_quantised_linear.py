from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from evenflow.execution.kernels.quantised import PackedLinear, Workspace, quantised_linear
from support.kernel_sets import NATIVE_SETS, kernel_set
from support.quantised_rows import STORED_TYPES, dequantised, in_features, random_rows

GROUP = 32
OUT_FEATURES = 40  # two tiles and a half


def workspace(name: str) -> Workspace:
    kernels = kernel_set(name).quantised
    assert kernels is not None
    return Workspace(kernels)


def linear(kernels: str, stored_type: str, out_features: int = OUT_FEATURES) -> PackedLinear:
    return quantised_linear([random_rows(stored_type, out_features)], None, workspace(kernels))


def activations(num_rows: int, dim: int, seed: int = 1) -> torch.Tensor:
    """Return rows whose groups are of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, dim // GROUP, GROUP, generator=generator)
    sizes = torch.randn(num_rows, dim // GROUP, 1, generator=generator)
    return (x * (2 * sizes).exp()).view(num_rows, dim)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Return x as the kernels see it: int8 with a scale for each group, in float64."""
    groups = x.view(len(x), -1, GROUP)
    peaks = groups.abs().amax(2, keepdim=True)
    codes = torch.round(groups * (127 / peaks))
    return (codes.double() * (peaks / 127)).view(x.shape)


@pytest.fixture(params=[2, 3, 4])
def _several_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kernels", NATIVE_SETS)
@pytest.mark.parametrize("stored_type", STORED_TYPES)
@pytest.mark.parametrize("num_rows", [1, 3, 8, 13])
def test_linear_is_the_product_of_rounded_rows_and_stored_weight(
    kernels: str, stored_type: str, num_rows: int
) -> None:
    x = activations(num_rows, in_features(stored_type))
    weight = dequantised(random_rows(stored_type, OUT_FEATURES)).double()
    expected = rounded(x) @ weight.T
    # fp32 rounds each of the dozens of sums by at most 2^-24 of the magnitudes that are summed.
    bound = (rounded(x).abs() @ weight.abs().T) * 2.0**-20
    found = linear(kernels, stored_type)(x)
    assert found.dtype == torch.float32
    assert bool(((found - expected).abs() <= bound).all())


@pytest.mark.parametrize("stored_type", STORED_TYPES)
def test_linear_has_the_same_bits_on_every_instruction_set(stored_type: str) -> None:
    x = activations(21, in_features(stored_type))
    first, *others = [linear(kernels, stored_type)(x) for kernels in NATIVE_SETS]
    for other in others:
        assert torch.equal(first, other)


@pytest.mark.parametrize("kernels", NATIVE_SETS)
@pytest.mark.parametrize("stored_type", STORED_TYPES)
def test_row_has_the_same_bits_in_every_batch(kernels: str, stored_type: str) -> None:
    apply = linear(kernels, stored_type)
    x = activations(130, apply.in_features)
    together = apply(x)
    for num_rows in [*range(1, 18), 31, 64, 65, 129]:
        assert torch.equal(apply(x[:num_rows]), together[:num_rows])
        assert torch.equal(apply(x[-num_rows:]), together[-num_rows:])


@pytest.mark.usefixtures("_several_threads")
@pytest.mark.parametrize("kernels", NATIVE_SETS)
@pytest.mark.parametrize("num_rows", [1, 9, 33, 50, 300])
def test_linear_has_the_same_bits_on_several_threads(kernels: str, num_rows: int) -> None:
    apply = linear(kernels, "Q4_K", out_features=200)
    x = activations(num_rows, apply.in_features)
    found = [apply(x) for _ in range(5)]
    torch.set_num_threads(1)
    expected = apply(x)
    assert all(torch.equal(each, expected) for each in found)


@pytest.mark.parametrize("kernels", NATIVE_SETS)
def test_blocks_of_rows_meet_without_a_seam(kernels: str) -> None:
    """Long rows in great number do not fit a cache together, and are multiplied in blocks."""
    apply = linear(kernels, "Q6_K", out_features=16)
    x = activations(450, apply.in_features)
    together = apply(x)
    assert torch.equal(together, torch.cat([apply(part) for part in x.split(50)]))


@pytest.mark.parametrize("kernels", NATIVE_SETS)
@pytest.mark.parametrize("num_rows", [1, 12])
def test_weights_side_by_side_give_their_results_side_by_side(kernels: str, num_rows: int) -> None:
    names, sizes = ("Q4_1", "Q8_0", "Q4_1", "Q5_0"), (24, 3, 16, 70)
    stored = [random_rows(name, size, seed=size) for name, size in zip(names, sizes, strict=True)]
    shared = workspace(kernels)
    bias = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(3))
    x = activations(num_rows, in_features("Q4_1"))
    found = quantised_linear(stored, bias, shared)(x)
    apart = [quantised_linear([rows], None, shared)(x) for rows in stored]
    assert torch.equal(found, torch.cat(apart, dim=1) + bias)


@pytest.mark.parametrize("kernels", NATIVE_SETS)
@pytest.mark.parametrize("out_features", [1, 7, 8, 9, 15, 16, 17, 33])
def test_linear_writes_only_the_channels_there_are(kernels: str, out_features: int) -> None:
    whole = linear(kernels, "Q4_0", out_features=48)
    x = activations(3, whole.in_features)
    stored = random_rows("Q4_0", 48)
    part = type(stored)(stored.type, stored.rows[:out_features], stored.in_features)
    found = quantised_linear([part], None, workspace(kernels))(x)
    assert torch.equal(found, whole(x)[:, :out_features])


@pytest.mark.parametrize("kernels", NATIVE_SETS)
def test_linear_takes_rows_that_lie_apart(kernels: str) -> None:
    apply = linear(kernels, "Q4_1")
    wide = activations(6, 2 * apply.in_features)
    x = wide[::2, apply.in_features :]
    assert torch.equal(apply(x), apply(x.contiguous()))
    assert torch.equal(apply(x.T.contiguous().T), apply(x.contiguous()))


@pytest.mark.parametrize("kernels", NATIVE_SETS)
def test_linear_of_no_rows_is_empty(kernels: str) -> None:
    apply = linear(kernels, "Q4_1")
    assert apply(torch.empty(0, apply.in_features)).shape == (0, OUT_FEATURES)


@pytest.mark.parametrize("kernels", NATIVE_SETS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_gives_nan_and_spoils_no_other(kernels: str, value: float) -> None:
    apply = linear(kernels, "Q4_0")
    x = activations(11, apply.in_features)
    expected = apply(x)
    x[4, 70] = value
    found = apply(x)
    assert bool(found[4].isnan().all())
    others = torch.arange(11) != 4
    assert torch.equal(found[others], expected[others])


@pytest.mark.parametrize("kernels", NATIVE_SETS)
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38])
def test_groups_of_next_to_nothing_count_as_zero(kernels: str, size: float) -> None:
    apply = linear(kernels, "Q4_1")
    x = activations(2, apply.in_features)
    x[:, 32:64] = 0
    expected = apply(x)
    x[:, 32:64] = size
    assert torch.equal(apply(x), expected)


@pytest.mark.parametrize("kernels", NATIVE_SETS)
@pytest.mark.parametrize("stored_type", STORED_TYPES)
def test_sums_of_the_largest_products_do_not_overflow(kernels: str, stored_type: str) -> None:
    for codes in (0x00, 0x7F, 0x80, 0xFF):
        stored = random_rows(stored_type, OUT_FEATURES, codes=codes)
        weight = dequantised(stored).double()
        x = torch.full((3, in_features(stored_type)), 127.0)
        x[1], x[2, ::2] = -127, -127
        found = quantised_linear([stored], None, workspace(kernels))(x)
        bound = (x.double().abs() @ weight.abs().T) * 2.0**-20
        assert bool(((found - x.double() @ weight.T).abs() <= bound).all())
