"""Every architecture computes what transformers computes, however its tokens are batched."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from paged_runs import BACKENDS, PagedRun, paged_run
from transformers_twins import CONFIGS, Twin, twin

TOLERANCE = 1e-4
NUM_PROMPT_TOKENS = 45  # longer than the windows, and not a whole number of blocks
NUM_NEW_TOKENS = 8


def prompt(seed: int, num_tokens: int = NUM_PROMPT_TOKENS) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(128, (num_tokens,), generator=generator).tolist()


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max().item() < TOLERANCE


RAGGED_PROMPTS = {0: prompt(3), 1: prompt(4, 20), 2: prompt(5, 33), 3: prompt(6, 1)}
RAGGED_CUTS = {0: (0, 13, 14, 45), 1: (0, 1, 17, 20), 2: (0, 16, 32, 33), 3: (0, 0, 0, 1)}


def run_ragged(run: PagedRun) -> dict[int, torch.Tensor]:
    """Run all prompts in three steps that mix long chunks with single tokens."""
    parts: dict[int, list[torch.Tensor]] = {request: [] for request in RAGGED_PROMPTS}
    for turn in range(3):
        chunks = {}
        for request in (2, 0, 3, 1):
            start, stop = RAGGED_CUTS[request][turn : turn + 2]
            if start < stop:
                chunks[request] = RAGGED_PROMPTS[request][start:stop]
        for request, logits in run.step(chunks).items():
            parts[request].append(logits)
    return {request: torch.cat(logits) for request, logits in parts.items()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep tiny kernels from waiting for a second core that other programs may hold."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> Twin:
    return twin(name)


@pytest.fixture(params=BACKENDS)
def run(request: pytest.FixtureRequest, model: Twin) -> PagedRun:
    return paged_run(model.spec, model.weights, request.param)


def test_logits_equal_transformers_when_prompt_is_one_chunk(model: Twin, run: PagedRun) -> None:
    token_ids = prompt(1)
    assert_close(run.step({0: token_ids})[0], model.logits(token_ids))


def test_logits_equal_transformers_when_chunked_then_decoded(model: Twin, run: PagedRun) -> None:
    token_ids = prompt(2)
    cuts = [0, 1, 14, 17, 33, 40, 41, 42, 43, 44, 45]
    chunks = [token_ids[start:stop] for start, stop in itertools.pairwise(cuts)]
    ours = torch.cat([run.step({2: chunk})[2] for chunk in chunks])
    assert_close(ours, model.logits(token_ids))


def test_logits_equal_transformers_when_batch_is_ragged(model: Twin, run: PagedRun) -> None:
    for request, logits in run_ragged(run).items():
        assert_close(logits, model.logits(RAGGED_PROMPTS[request]))


def test_logits_have_the_same_bits_whatever_the_batch_and_the_chunks(model: Twin) -> None:
    together = run_ragged(paged_run(model.spec, model.weights, "cpu"))
    alone = paged_run(model.spec, model.weights, "cpu")
    for request, token_ids in RAGGED_PROMPTS.items():
        assert torch.equal(alone.step({request: token_ids})[request], together[request])


@pytest.mark.parametrize("backend", ["cpu", "native"])
def test_last_hidden_states_have_the_same_bits_when_computed_alone(
    model: Twin, backend: str
) -> None:
    run = paged_run(model.spec, model.weights, backend)
    # The last of a chunk and of a whole prompt, and a decode that leaves a window behind.
    for chunks in ({0: RAGGED_PROMPTS[0][:37], 1: RAGGED_PROMPTS[1]}, {0: [7], 2: [9, 8]}):
        batch = run.take(chunks)
        with torch.inference_mode():
            every = run.model.forward(batch, run.attention)
            last = run.model.forward(batch, run.attention, last_only=True)
        assert torch.equal(last, every[batch.last_rows])


def test_greedy_tokens_equal_transformers(model: Twin, run: PagedRun) -> None:
    token_ids = prompt(7, 30)
    theirs = model.reference.generate(
        torch.tensor([token_ids]), max_new_tokens=NUM_NEW_TOKENS, do_sample=False
    )[0, len(token_ids) :].tolist()
    ours: list[int] = []
    chunk = token_ids
    for _ in range(NUM_NEW_TOKENS):
        chunk = [int(run.step({1: chunk})[1][-1].argmax())]
        ours += chunk
    assert ours == theirs
