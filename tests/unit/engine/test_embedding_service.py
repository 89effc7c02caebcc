"""Sentence jobs between engine steps: small slices, in turns, each result once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evenflow.core.errors import ContextLengthError, InvalidRequestError
from evenflow.core.pooling import PoolingParams, embedding_entries
from evenflow.engine.embedding import EmbeddingService

RAW = PoolingParams(normalize=False)


class FakeEncoder:
    """Gives a text the vector (number of tokens, first token), and remembers its batches."""

    num_dimensions = 2

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def check(self, token_ids: Sequence[int]) -> None:
        if len(token_ids) > 50:
            raise ContextLengthError("too long", param="input")

    def encode(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        self.batches.append([len(text) for text in texts])
        return np.array([(len(text), text[0]) for text in texts], dtype=np.float32)


def make_service(token_budget: int = 10) -> tuple[EmbeddingService, FakeEncoder]:
    encoder: Any = FakeEncoder()
    return EmbeddingService(encoder, token_budget=token_budget), encoder


def run(service: EmbeddingService) -> dict[tuple[int, int], list[float]]:
    results: dict[tuple[int, int], list[float]] = {}
    while service.has_work:
        for job_id, index, embedding in service.step():
            assert (job_id, index) not in results
            results[job_id, index] = embedding_entries(embedding)
    return results


def test_service_embeds_every_text_once_under_its_index() -> None:
    service, _ = make_service()
    service.submit(7, [[1] * 3, [2] * 8, [3] * 4], RAW)
    service.submit(8, [[4] * 9], RAW)
    assert run(service) == {(7, 0): [3, 1], (7, 1): [8, 2], (7, 2): [4, 3], (8, 0): [9, 4]}
    assert service.step() == []


def test_service_keeps_slices_within_the_budget() -> None:
    service, encoder = make_service(token_budget=10)
    service.submit(1, [[0] * length for length in (4, 6, 1, 30, 2, 3, 5, 6)], RAW)
    run(service)
    assert encoder.batches == [[4, 6], [1], [30], [2, 3, 5], [6]]


def test_service_lets_jobs_take_turns() -> None:
    service, _ = make_service(token_budget=10)
    service.submit(1, [[0] * 5] * 20, RAW)
    service.submit(2, [[0] * 4] * 2, RAW)
    first = [(job_id, index) for job_id, index, _ in [*service.step(), *service.step()]]
    assert first == [(1, 0), (2, 0), (1, 1), (2, 1)]


def test_service_scales_and_cuts_as_each_job_asks() -> None:
    service, _ = make_service()
    service.submit(1, [[4] * 3])
    service.submit(2, [[4] * 3], PoolingParams(dimensions=1, normalize=False))
    assert run(service) == {(1, 0): pytest.approx([0.6, 0.8]), (2, 0): [3.0]}


def test_service_forgets_a_cancelled_job_only() -> None:
    service, _ = make_service(token_budget=4)
    service.submit(1, [[0] * 4] * 5, RAW)
    service.submit(2, [[0] * 3], RAW)
    service.step()
    service.cancel(1)
    assert list(run(service)) == [(2, 0)]


@pytest.mark.parametrize(
    ("texts", "params", "error"),
    [
        ([], RAW, InvalidRequestError),
        ([[0], [0] * 51], RAW, ContextLengthError),
        ([[0]], PoolingParams(dimensions=3), InvalidRequestError),
    ],
)
def test_submit_refuses_a_job_as_a_whole(
    texts: list[list[int]], params: PoolingParams, error: type[Exception]
) -> None:
    service, _ = make_service()
    with pytest.raises(error):
        service.submit(1, texts, params)
    assert not service.has_work
