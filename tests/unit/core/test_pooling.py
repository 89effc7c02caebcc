"""From a mean of hidden states to an embedding."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.core.pooling import PoolingParams, embedding_entries

MEAN = np.array([3.0, -4.0, 12.0])


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [3 / 13, -4 / 13, 12 / 13]),
        ({"normalize": False}, [3.0, -4.0, 12.0]),
        ({"dimensions": 2}, [0.6, -0.8]),
        ({"dimensions": 2, "normalize": False}, [3.0, -4.0]),
    ],
)
def test_embedding_cuts_and_then_scales(params: dict[str, Any], expected: list[float]) -> None:
    entries = embedding_entries(PoolingParams(**params).embedding(MEAN))
    assert entries == [float(np.float32(value)) for value in expected]


def test_embedding_is_what_openai_clients_decode() -> None:
    encoded = base64.b64encode(PoolingParams().embedding(MEAN))
    decoded = np.frombuffer(base64.b64decode(encoded), dtype="float32")
    assert decoded == pytest.approx(MEAN / 13)


def test_embedding_of_nothing_but_zeros_stays_zero() -> None:
    assert embedding_entries(PoolingParams().embedding(np.zeros(3))) == [0.0, 0.0, 0.0]


def test_embedding_leaves_the_mean_unchanged() -> None:
    mean = MEAN.copy()
    PoolingParams().embedding(mean)
    assert mean.tolist() == MEAN.tolist()


@pytest.mark.parametrize(
    "params",
    [{"dimensions": 0}, {"dimensions": True}, {"dimensions": 2.0}, {"normalize": "no"}],
)
def test_pooling_params_refuse_values_out_of_range(params: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        PoolingParams(**params)
    assert caught.value.param == next(iter(params))


def test_check_fits_names_the_numbers() -> None:
    PoolingParams(dimensions=3).check_fits(3)
    with pytest.raises(InvalidRequestError, match=r"dimensions is 4.*3 entries.*at most 3"):
        PoolingParams(dimensions=4).check_fits(3)
