"""Requests for embeddings beside requests for tokens, on an engine without a model.

The scripted hidden state of a token is (1, position, token id), so the mean over a prompt is known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evenflow.core.errors import (
    ContextLengthError,
    DuplicateRequestError,
    IntegrityError,
    InvalidRequestError,
)
from evenflow.core.pooling import PoolingParams, embedding_entries
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.limits import ModelLimits
from evenflow.engine.outputs import Delta
from support.preempting import preempt
from support.scripted_engine import make_engine, scripted_token

RAW = PoolingParams(normalize=False)
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


def prompt(length: int, salt: int = 0) -> list[int]:
    return [(37 * at + salt) % 1000 for at in range(length)]


def mean(token_ids: list[int]) -> list[float]:
    rows = [(1, at, token) for at, token in enumerate(token_ids)]
    return [float(value) for value in np.mean(rows, axis=0).astype(np.float32)]


def run(engine: Engine) -> dict[str, list[Delta]]:
    """Step to the end, checking everything after each step."""
    deltas: dict[str, list[Delta]] = {}
    while engine.has_work:
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
        engine.scheduler.check_integrity()
    return deltas


def entries(delta: Delta) -> list[float]:
    assert delta.embedding is not None
    return embedding_entries(delta.embedding)


def assert_empty(engine: Engine) -> None:
    assert not engine.scheduler.requests
    assert engine.scheduler.kv.stats().num_used == 0
    assert not len(engine.scheduler.kv._prefixes)


@pytest.mark.parametrize("length", [1, 3, 4, 31, 32, 33, 100])
def test_pooling_request_gives_the_mean_over_its_prompt_and_no_token(length: int) -> None:
    engine, executor = make_engine()
    engine.add_request("e", prompt(length), RAW)
    (delta,) = run(engine)["e"]
    assert entries(delta) == mean(prompt(length))
    assert (delta.token_id, delta.text, delta.finish_reason) == (None, "", "stop")
    assert delta.metrics is not None
    assert (delta.metrics.num_output_tokens, delta.metrics.first_token_s) == (0, None)
    assert sum(step["e"] for step in executor.steps) == length
    assert_empty(engine)


def test_pooling_request_may_fill_the_whole_context() -> None:
    engine, _ = make_engine(max_model_len=32)
    engine.add_request("e", prompt(32), RAW)
    assert entries(run(engine)["e"][0]) == mean(prompt(32))
    with pytest.raises(ContextLengthError, match=r"33 tokens.*32"):
        engine.add_request("e", prompt(33), RAW)


def test_pooling_request_reserves_no_room_for_output() -> None:
    engine, _ = make_engine()
    engine.add_request("e", prompt(40), RAW)
    engine.step()
    stats = engine.scheduler.kv.stats()
    assert (stats.num_used, stats.num_reserved) == (10, 0)


def test_pooling_request_shares_steps_with_generation() -> None:
    engine, executor = make_engine()
    engine.add_request("g", prompt(5), GREEDY)
    engine.add_request("e", prompt(40), RAW)
    deltas = run(engine)
    assert [d.token_id for d in deltas["g"]] == [scripted_token("g", 5 + n) for n in range(12)]
    assert entries(deltas["e"][0]) == mean(prompt(40))
    assert {"g", "e"} in [set(step) for step in executor.steps]


def test_pooling_request_starts_its_sum_again_when_it_was_preempted() -> None:
    engine, _ = make_engine(max_num_batched_tokens=9)
    engine.add_request("e", prompt(40), RAW)
    for _ in range(3):
        engine.step()
    scheduler = engine.scheduler
    preempt(scheduler, scheduler.running[0])
    (delta,) = run(engine)["e"]
    assert entries(delta) == mean(prompt(40))
    assert delta.metrics is not None
    assert delta.metrics.num_preemptions == 1


def test_pooling_requests_are_right_when_memory_runs_out() -> None:
    engine, _ = make_engine(num_blocks=20, max_num_batched_tokens=16)
    for number in range(6):
        engine.add_request(f"g{number}", prompt(9, number), SamplingParams(max_tokens=30))
        engine.add_request(f"e{number}", prompt(20 + number, number), RAW)
    deltas = run(engine)
    assert engine.scheduler.num_preemptions > 0
    for number in range(6):
        assert entries(deltas[f"e{number}"][0]) == mean(prompt(20 + number, number))
        tokens = [delta.token_id for delta in deltas[f"g{number}"]]
        assert tokens == [scripted_token(f"g{number}", 9 + at) for at in range(30)]


def test_pooling_request_computes_all_of_a_cached_prompt() -> None:
    engine, _ = make_engine()
    for name in ("first", "second"):
        engine.add_request(name, prompt(30), RAW)
        (delta,) = run(engine)[name]
        assert entries(delta) == mean(prompt(30))
        assert delta.metrics is not None
        assert delta.metrics.num_cached_tokens == 0


def test_generation_finds_the_blocks_of_a_pooled_prompt() -> None:
    engine, _ = make_engine()
    engine.add_request("e", prompt(30), RAW)
    run(engine)
    engine.add_request("g", prompt(30), GREEDY)
    last = run(engine)["g"][-1]
    assert last.metrics is not None
    assert last.metrics.num_cached_tokens == 28


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_abort_of_a_pooling_request_leaves_nothing_behind(num_steps: int) -> None:
    engine, _ = make_engine(max_num_batched_tokens=9)
    engine.add_request("e", prompt(40), RAW)
    for _ in range(num_steps):
        engine.step()
    assert engine.abort("e")
    engine.scheduler.check_integrity()
    (delta,) = engine.step()
    assert (delta.finish_reason, delta.embedding) == ("abort", None)
    assert not engine.has_work
    assert_empty(engine)


def test_failure_of_a_pooling_request_is_reported() -> None:
    engine, executor = make_engine()
    plain = executor.execute

    def failing(plan: Any) -> Any:
        result = plain(plan)
        result.hidden_sums.clear()
        result.failures[0] = "the test says so"
        return result

    executor.execute = failing  # type: ignore[method-assign]
    engine.add_request("e", prompt(10), RAW)
    (delta,) = run(engine)["e"]
    assert (delta.finish_reason, delta.error) == ("error", "the test says so")
    assert delta.embedding is None
    assert_empty(engine)


def test_add_request_refuses_more_dimensions_than_the_model_has() -> None:
    engine, _ = make_engine()
    engine.limits = ModelLimits(128, 1000, hidden_size=3)
    with pytest.raises(InvalidRequestError, match="at most 3"):
        engine.add_request("e", prompt(5), PoolingParams(dimensions=4))
    assert not engine.has_work


def test_add_request_refuses_a_pooling_request_under_an_id_in_use() -> None:
    engine, _ = make_engine()
    engine.add_request("x", prompt(5), GREEDY)
    with pytest.raises(DuplicateRequestError):
        engine.add_request("x", prompt(5), RAW)


def test_engine_notices_an_executor_that_sums_nothing() -> None:
    engine, executor = make_engine()
    plain = executor.execute

    def forgetful(plan: Any) -> Any:
        result = plain(plan)
        for index in result.hidden_sums:
            result.hidden_sums[index] = None  # type: ignore[assignment]
        return result

    executor.execute = forgetful  # type: ignore[method-assign]
    engine.add_request("e", prompt(5), RAW)
    with pytest.raises(IntegrityError, match="not summed"):
        engine.step()
