"""Drawing tokens in a Triton kernel: the same ones as on the host; interpreted without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.triton_interpreter import DEVICE

# isort: split
from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.execution.kernels.triton import sampling
from evenflow.execution.kernels.triton.sampling import Draws, draw
from evenflow.execution.torch.sampler import sample

# The logarithm of no weight is -inf, which numpy remarks on.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")

CUTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "cold": {"temperature": 0.7},
    "freezing": {"temperature": 1e-300},
    "hot": {"temperature": 5.0},
    "top_k": {"top_k": 5},
    "top_k_of_all": {"top_k": 10**6},
    "top_p": {"top_p": 0.9},
    "top_p_hot": {"top_p": 0.3, "temperature": 3.0},
    "top_p_flat": {"top_p": 0.99, "temperature": 50.0},
    "min_p": {"min_p": 0.1},
    "top_k_and_top_p": {"top_k": 40, "top_p": 0.5, "temperature": 2.0},
    "all": {"top_k": 20, "top_p": 0.8, "min_p": 0.02, "temperature": 1.5},
}


def make_requests(params: dict[str, Any], num: int) -> list[Request]:
    return [
        Request(
            RequestId(f"r{seed}"),
            [0],
            SamplingParams(seed=seed, **params),
            max_num_tokens=10**6,
        )
        for seed in range(num)
    ]


def make_logits(num_rows: int, vocab_size: int, *, tied: bool) -> torch.Tensor:
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    return (2 * logits).round() if tied else 3 * logits


def draw_on_device(logits: torch.Tensor, requests: list[Request]) -> list[int]:
    draws = Draws.of(requests)
    tokens: list[int] = draw(logits.to(DEVICE), Draws(draws.numbers.to(DEVICE))).tolist()
    return tokens


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("vocab_size", [20, 700])
@pytest.mark.parametrize("params", CUTS.values(), ids=CUTS.keys())
def test_draw_equals_the_sampler_of_the_host(
    params: dict[str, Any], vocab_size: int, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_BLOCK", 512)
    requests = make_requests(params, 3)
    logits = make_logits(3, vocab_size, tied=tied)
    assert draw_on_device(logits, requests) == sample(logits.clone(), requests).tolist()


@pytest.mark.parametrize("name", ["top_p_flat", "all"])
def test_draw_is_the_same_when_candidates_are_too_many_to_list(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, logits = make_requests(CUTS[name], 3), make_logits(3, 700, tied=False)
    expected = draw_on_device(logits, requests)
    monkeypatch.setattr(sampling, "_LIST", 2)
    assert draw_on_device(logits, requests) == expected


def test_draw_follows_the_distribution_when_seeds_differ() -> None:
    """Twenty seeds, three tokens: the host's inversion, step by step."""
    logits = torch.tensor([[1.0, -torch.inf, 2.0, 0.0]]).expand(20, -1).contiguous()
    requests = make_requests({"temperature": 1.0}, 20)
    tokens = draw_on_device(logits, requests)
    assert tokens == sample(logits.clone(), requests).tolist()
    assert set(tokens) == {0, 2, 3}


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_draw_gives_a_possible_token_at_the_ends_of_the_range(uniform: float, top_p: float) -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf, -200.0]], device=DEVICE)
    numbers = torch.tensor([[1.0], [top_p], [0.0], [uniform], [0.0]], dtype=torch.float64)
    assert draw(logits, Draws(numbers.to(DEVICE))).item() in {1, 2}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("params", CUTS.values(), ids=CUTS.keys())
def test_draw_gives_a_token_of_the_vocabulary_when_logits_are_nan(params: dict[str, Any]) -> None:
    logits = torch.full((2, 300), torch.nan)
    logits[1] = make_logits(1, 300, tied=False)
    logits[1, 7] = torch.nan
    assert all(0 <= token < 300 for token in draw_on_device(logits, make_requests(params, 2)))


def test_draw_takes_logits_of_16_bits_and_leaves_them_alone() -> None:
    logits = make_logits(2, 300, tied=False).bfloat16()
    before = logits.clone()
    requests = make_requests({"temperature": 0.0}, 2)
    assert draw_on_device(logits, requests) == logits.float().argmax(-1).tolist()
    assert torch.equal(logits, before)


def test_draws_of_a_token_that_follows_unknown_ones_are_those_it_will_have() -> None:
    ahead = Draws.of(make_requests({"temperature": 1.0}, 2), num_ahead=3)
    later = make_requests({"temperature": 1.0}, 2)
    for request in later:
        request.token_ids += [1, 2, 3]
    assert torch.equal(ahead.numbers, Draws.of(later).numbers)
    assert not torch.equal(ahead.numbers, Draws.of(later, num_ahead=1).numbers)
