from __future__ import annotations

import pytest

from evenflow.core.errors import ConfigError
from evenflow.models.weights.precision import resolve_linear


@pytest.mark.parametrize(
    ("is_quantised", "has_native_kernels", "expected"),
    [(True, True, "w4a8"), (False, True, "exact"), (True, False, "exact"), (False, False, "exact")],
)
def test_auto_takes_few_bits_where_the_file_has_them_and_kernels_multiply_by_them(
    is_quantised: bool, has_native_kernels: bool, expected: str
) -> None:
    found = resolve_linear("auto", is_quantised=is_quantised, has_native_kernels=has_native_kernels)
    assert found == expected


@pytest.mark.parametrize("choice", ["exact", "w4a8", "w8a8"])
@pytest.mark.parametrize("is_quantised", [True, False])
def test_a_named_precision_is_taken_at_its_word(choice: str, is_quantised: bool) -> None:
    assert resolve_linear(choice, is_quantised=is_quantised, has_native_kernels=True) == choice


@pytest.mark.parametrize("choice", ["w4a8", "w8a8"])
def test_few_bits_without_native_kernels_are_refused_with_a_way_out(choice: str) -> None:
    with pytest.raises(ConfigError, match=rf"--linear {choice} .*C\+\+ compiler.*--linear exact"):
        resolve_linear(choice, is_quantised=True, has_native_kernels=False)


def test_exact_needs_no_native_kernels() -> None:
    assert resolve_linear("exact", is_quantised=True, has_native_kernels=False) == "exact"
