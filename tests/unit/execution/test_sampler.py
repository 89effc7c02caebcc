from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from evenflow.core import rng
from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.execution.torch.sampler import sample, token_logprobs
from evenflow.scheduling.plan import TokenLogprobs

ODD_SIZES = [20, 255, 256, 257, 700]


def make_request(
    params: SamplingParams,
    *,
    prompt: tuple[int, ...] = (0,),
    output: tuple[int, ...] = (),
    stop_ids: tuple[int, ...] = (),
) -> Request:
    request = Request(
        RequestId("r"),
        list(prompt),
        params,
        max_num_tokens=10**6,
        stop_token_ids=frozenset(stop_ids),
    )
    request.token_ids += output
    return request


def logprobs_of(logits: torch.Tensor, tokens: list[int], num_top: list[int]) -> list[TokenLogprobs]:
    return token_logprobs(logits, torch.tensor(tokens), num_top).wait()


def make_logits(seed: int, num_rows: int, vocab_size: int, scale: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * scale


def adjusted(row: list[float], request: Request) -> list[float]:
    """Apply penalties, bias and min_tokens the slow way, rounding to fp32 as tensors do."""
    params, result = request.sampling, [np.float32(logit) for logit in row]
    penalty = np.float32(params.repetition_penalty)
    for token in set(request.token_ids):
        above = result[token] > 0
        result[token] = result[token] / penalty if above else result[token] * penalty
    for token in set(request.output_token_ids):
        count = request.output_token_ids.count(token)
        result[token] -= np.float32(params.frequency_penalty * count + params.presence_penalty)
    for token, bias in params.logit_bias.items():
        result[token] += np.float32(bias)
    if request.num_output_tokens < params.min_tokens:
        for token in request.stop_token_ids:
            result[token] = np.float32(-math.inf)
    return [float(logit) for logit in result]


def candidates(row: list[float], params: SamplingParams) -> list[tuple[int, float]]:
    """Return (token, probability) of what top-k, top-p and min-p keep, likeliest first."""
    best = max(row)
    weights = [math.exp((logit - best) / params.temperature) for logit in row]
    total = math.fsum(weights)
    order = sorted(range(len(row)), key=lambda token: (-weights[token], token))
    kept = order[: params.top_k or None]
    mass = math.fsum(weights[token] for token in kept)
    before, nucleus = 0.0, []
    for token in kept:
        if before < params.top_p * mass and weights[token] >= params.min_p * weights[order[0]]:
            nucleus.append((token, weights[token] / total))
        before += weights[token]
    return nucleus


def oracle(row: list[float], request: Request) -> tuple[int, float]:
    """Return the token, and how far the random number is from choosing another one."""
    params, row = request.sampling, adjusted(row, request)
    if params.temperature == 0:
        return row.index(max(row)), 1.0
    kept = candidates(row, params)
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        kept.sort()  # nothing is cut, so the distribution is inverted in the order of ids
    (number,) = rng.uniform(
        np.array([request.seed], np.uint64), np.array([request.num_output_tokens], np.uint64)
    )
    total, running = math.fsum(p for _, p in kept), 0.0
    edges = []
    chosen = None
    for token, probability in kept:
        running += probability
        edges.append(running / total)
        if chosen is None and number < running / total:
            chosen = token
    return chosen if chosen is not None else kept[-1][0], min(abs(e - number) for e in edges)


def draw(logits: torch.Tensor, requests: list[Request]) -> list[int]:
    return sample(logits.clone(), requests).tolist()


params_strategy = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.05, 0.7, 1.0, 2.5]),
        "top_k": st.sampled_from([0, 0, 1, 2, 19, 20, 256, 257, 300, 10_000]),
        "top_p": st.sampled_from([1.0, 1.0, 0.999, 0.9, 0.5, 1e-6]),
        "min_p": st.sampled_from([0.0, 0.0, 1e-4, 0.1, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.7]),
        "presence_penalty": st.sampled_from([0.0, 0.5, -2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.25, -1.0]),
        "logit_bias": st.dictionaries(st.integers(0, 19), st.floats(-5, 5, width=16), max_size=3),
        "min_tokens": st.sampled_from([0, 3]),
        "seed": st.integers(0, 2**64 - 1),
    }
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    many=st.lists(params_strategy, min_size=1, max_size=5),
    vocab_size=st.sampled_from(ODD_SIZES),
    scale=st.sampled_from([0.01, 1.0, 6.0]),
    seed=st.integers(0, 10**6),
)
def test_sample_equals_the_oracle_alone_and_in_a_batch(
    many: list[dict[str, Any]], vocab_size: int, scale: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    requests = [
        make_request(
            SamplingParams(**values),
            prompt=tuple(generator.integers(0, 20, 5).tolist()),
            output=tuple(generator.integers(0, 20, int(generator.integers(0, 6))).tolist()),
            stop_ids=tuple(generator.integers(0, 20, 2).tolist()),
        )
        for values in many
    ]
    logits = make_logits(seed, len(requests), vocab_size, scale)
    tokens = draw(logits, requests)
    for row, request in enumerate(requests):
        expected, distance = oracle(logits[row].tolist(), request)
        assert tokens[row] == expected or distance < 1e-9
        assert draw(logits[row : row + 1], [request]) == [tokens[row]]


@pytest.mark.parametrize(
    "values", [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.15}, {"top_k": 8, "top_p": 0.7}]
)
def test_sample_follows_the_distribution(values: dict[str, Any]) -> None:
    logits = make_logits(3, 1, 12, 1.0)
    params = SamplingParams(temperature=1.3, **values)
    num_draws = 20_000
    requests = [
        make_request(SamplingParams(seed=seed, temperature=1.3, **values), output=(0,) * position)
        for seed in range(200)
        for position in range(100)
    ]
    counts = np.bincount(draw(logits.expand(num_draws, -1), requests), minlength=12)
    kept = candidates(logits[0].tolist(), params)
    total = sum(p for _, p in kept)
    expected = {token: probability / total * num_draws for token, probability in kept}
    assert counts.sum() == sum(counts[token] for token in expected)
    chi_square = sum((counts[t] - count) ** 2 / count for t, count in expected.items())
    # At most 11 degrees of freedom: 31.3 is exceeded with a probability of one in a thousand.
    assert chi_square < 31.3


@pytest.mark.parametrize("vocab_size", ODD_SIZES)
@pytest.mark.parametrize(
    "values",
    [{"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 300, "top_p": 0.7, "min_p": 0.05}],
)
def test_sample_keeps_what_transformers_keeps(vocab_size: int, values: dict[str, Any]) -> None:
    logits = make_logits(vocab_size, 1, vocab_size, 2.0)
    warpers = LogitsProcessorList()
    if "top_k" in values:
        warpers.append(TopKLogitsWarper(values["top_k"]))
    if "top_p" in values:
        warpers.append(TopPLogitsWarper(values["top_p"]))
    if "min_p" in values:
        warpers.append(MinPLogitsWarper(values["min_p"]))
    theirs = torch.isfinite(warpers(torch.zeros(1, 1, dtype=torch.int64), logits)[0])
    requests = [make_request(SamplingParams(seed=seed, **values)) for seed in range(4000)]
    drawn = set(draw(logits.expand(len(requests), -1), requests))
    assert drawn <= set(theirs.nonzero().flatten().tolist())
    kept = {token for token, _ in candidates(logits[0].tolist(), SamplingParams(**values))}
    assert kept == set(theirs.nonzero().flatten().tolist())


@pytest.mark.parametrize("values", [{"top_p": 0.999}, {"min_p": 0.9}, {"top_k": 300}, {"top_k": 9}])
def test_sample_breaks_ties_by_id_in_rows_flatter_than_the_first_candidates(
    values: dict[str, Any],
) -> None:
    logits = torch.zeros(1, 1000)
    for seed in range(20):
        request = make_request(SamplingParams(seed=seed, **values))
        assert draw(logits, [request]) == [oracle(logits[0].tolist(), request)[0]]


def test_sample_takes_the_first_of_equals_when_greedy() -> None:
    logits = torch.zeros(1, 500)
    logits[0, [7, 30, 499]] = 4.0
    assert draw(logits, [make_request(SamplingParams(temperature=0))]) == [7]


@pytest.mark.parametrize("temperature", [1e-4, 1e-300, 5e-324])
def test_sample_is_greedy_in_the_limit_of_small_temperatures(temperature: float) -> None:
    logits = make_logits(5, 1, 400, 3.0)
    for values in ({}, {"top_p": 0.9}):
        request = make_request(SamplingParams(temperature=temperature, **values))
        assert draw(logits, [request]) == [int(logits.argmax())]


def test_sample_never_takes_a_stop_token_before_min_tokens() -> None:
    logits = torch.zeros(1, 6)
    params = SamplingParams(min_tokens=2, ignore_eos=False)
    logits[0, 4] = 50.0
    early = make_request(params, output=(1,), stop_ids=(4,))
    late = make_request(params, output=(1, 1), stop_ids=(4,))
    assert draw(logits, [early]) != [4]
    assert draw(logits, [late]) == [4]


@pytest.mark.parametrize("vocab_size", [20, 3000])
def test_token_logprobs_equals_log_softmax(vocab_size: int) -> None:
    logits = make_logits(8, 5, vocab_size, 3.0)
    tokens, num_top = [3, 0, 19, 7, 11], [0, 1, 5, 20, 2]
    expected = torch.log_softmax(logits.double(), dim=-1)
    for row, entry in enumerate(logprobs_of(logits, tokens, num_top)):
        order = expected[row].argsort(descending=True).tolist()
        assert entry.token_id == tokens[row]
        assert entry.logprob == pytest.approx(float(expected[row, tokens[row]]), abs=1e-5)
        assert entry.rank == order.index(tokens[row]) + 1
        assert [token for token, _ in entry.top] == order[: num_top[row]]
        for token, logprob in entry.top:
            assert logprob == pytest.approx(float(expected[row, token]), abs=1e-5)


def test_token_logprobs_ranks_equals_alike_and_orders_them_by_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0] + [-9.0] * 16])
    first, second = logprobs_of(logits.expand(2, -1), [1, 2], [3, 3])
    assert (first.rank, second.rank) == (1, 1)
    assert [token for token, _ in first.top] == [1, 2, 0]


def test_token_logprobs_does_not_depend_on_the_batch() -> None:
    logits = make_logits(9, 6, 1500, 2.0)
    together = logprobs_of(logits, [5] * 6, [3] * 6)
    alone = [logprobs_of(logits[row : row + 1], [5], [3])[0] for row in range(6)]
    assert together == alone
