from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.core.errors import InvalidRequestError
from evenflow.core.sampling import SamplingParams

BAD_VALUES: dict[str, list[Any]] = {
    "n": [0, -1, 129, 1.0, True, "2", None],
    "max_tokens": [0, -5, 2.0, "10", False],
    "min_tokens": [-1, 1.5, None, 17],  # 17 is above the max_tokens of the test
    "temperature": [-0.1, 100.5, math.nan, math.inf, "hot", None, True, 10**400],
    "top_k": [-2, 0.5, None, True],
    "top_p": [0, -0.5, 1.01, math.nan, None],
    "min_p": [-0.01, 1.5, math.nan, "0.1"],
    "repetition_penalty": [0, 0.001, -1, 101, math.inf],
    "presence_penalty": [-2.5, 2.5, math.nan],
    "frequency_penalty": [-2.5, 2.5, [1]],
    "logit_bias": [
        None, 5, [1, 2], "ab", "", [], {"1": 1.0}, {-1: 1.0}, {True: 1.0}, {1: 101}, {1: math.nan},
        {1: "x"}, {1.0: 1.0},
    ],
    "stop": [None, 5, [""], [1], {"a": 1}, ["ok", None], ""],
    "stop_token_ids": [None, 7, "7", [-1], ["7"], [1.0], [True]],
    "include_stop_str_in_output": [None, 1, "yes"],
    "ignore_eos": [0, "no"],
    "seed": [2**64, -(2**63) - 1, 1.5, "7", True],
    "logprobs": [-1, 21, True, 1.0],
    "prompt_logprobs": [-1, 21, False, "all"],
    "skip_special_tokens": [None, 1],
    "structured": ["json", {"type": "object"}, True],
}  # fmt: skip
CASES = [(name, value) for name, values in BAD_VALUES.items() for value in values]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.integers(-2, 3)
    | st.floats()
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(-1, 9), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{n}={v!r:.20}" for n, v in CASES])
def test_sampling_params_names_the_param_of_a_bad_value(name: str, value: object) -> None:
    values = {"max_tokens": 16, name: value}
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**values)
    assert caught.value.param == name
    assert name in str(caught.value)


def test_sampling_params_has_a_bad_value_for_every_field() -> None:
    assert set(BAD_VALUES) == set(SamplingParams.__dataclass_fields__)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted(SamplingParams.__dataclass_fields__)), json_values))
def test_sampling_params_refuses_any_json_with_nothing_but_its_own_error(
    values: dict[str, Any],
) -> None:
    blamed = set()
    try:
        SamplingParams(**values)
    except InvalidRequestError as error:
        blamed.add(error.param)
    assert blamed <= set(values)


@pytest.mark.parametrize(
    "values",
    [
        {"n": 128},
        {"max_tokens": 4, "min_tokens": 4},
        {"temperature": 0},
        {"temperature": 100},
        {"top_p": 1},
        {"min_p": 1.0},
        {"seed": 2**64 - 1},
        {"seed": -(2**63)},
        {"logprobs": 0},
        {"prompt_logprobs": 20},
        {"logit_bias": {0: -100, 7: 100.0}},
    ],
)
def test_sampling_params_takes_the_limits_themselves(values: dict[str, Any]) -> None:
    params = SamplingParams(**values)
    assert {name: getattr(params, name) for name in values} == values


def test_sampling_params_takes_a_single_stop_string_and_lists() -> None:
    params = SamplingParams(stop="END", stop_token_ids=[1, 2])  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids) == (("END",), (1, 2))


def test_sampling_params_reads_minus_one_as_no_top_k() -> None:
    assert SamplingParams(top_k=-1).top_k == 0
