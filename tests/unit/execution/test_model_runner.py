from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.execution.attention import Attention
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.model_runner import ModelRunner, build_batch
from evenflow.memory.block_table import BlockTable
from evenflow.memory.extents import Extent
from evenflow.scheduling.plan import NO_TOKEN, StepPlan

VOCAB_SIZE = 32
BAD_TOKENS = {30: float("nan"), 31: float("inf")}


class FakeModel:
    """Finds token + 1 the likeliest successor; computes rubbish after a bad token."""

    def __init__(self) -> None:
        self.num_hidden = 0
        self.num_scored = 0

    def forward(
        self, batch: ForwardBatch, attention: Attention, *, last_only: bool = False
    ) -> torch.Tensor:
        rows = batch.last_tokens() if last_only else batch
        self.num_hidden += rows.num_tokens
        return rows.token_ids.unsqueeze(1).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.num_scored += len(hidden)
        tokens = hidden[:, 0].long().tolist()
        logits = torch.zeros(len(tokens), VOCAB_SIZE)
        for row, token in enumerate(tokens):
            logits[row, (token + 1) % VOCAB_SIZE] = 5.0
            if token in BAD_TOKENS:
                logits[row, 3] = BAD_TOKENS[token]
        return logits


def make_request(
    name: str, tokens: list[int], num_computed: int = 0, num_output: int = 0, **params: Any
) -> Request:
    params = {"temperature": 0.0, **params}
    prompt, output = tokens[: len(tokens) - num_output], tokens[len(tokens) - num_output :]
    request = Request(RequestId(name), prompt, SamplingParams(**params), max_num_tokens=1000)
    request.token_ids += output
    request.num_computed_tokens = num_computed
    return request


def make_table(block_ids: list[int], block_size: int) -> BlockTable:
    table = BlockTable(block_size, max_num_blocks=1000)
    for block_id in block_ids:
        table.append(Extent(block_id, 1))
    table.use(len(block_ids))
    return table


def make_plan(work: list[tuple[Request, int]]) -> StepPlan:
    tables = [make_table(list(range(10 * row, 10 * row + 10)), 4) for row in range(len(work))]
    return StepPlan([request for request, _ in work], [count for _, count in work], tables)


def run(work: list[tuple[Request, int]]) -> Any:
    return make_runner(FakeModel()).execute(make_plan(work))


def make_runner(model: Any) -> ModelRunner:
    attention: Any = None  # the fake model uses none
    return ModelRunner(model, attention, KVStore(64, 1, 1, 8, 4))


@pytest.mark.parametrize("seed", range(20))
def test_build_batch_equals_a_layout_token_by_token(seed: int) -> None:
    generator = np.random.default_rng(seed)
    block_size = int(generator.integers(1, 9))
    requests, counts, tables = [], [], []
    for row in range(int(generator.integers(1, 7))):
        length = int(generator.integers(1, 60))
        computed = int(generator.integers(0, length))
        tokens = generator.integers(0, 1000, length).tolist()
        requests.append(make_request(f"r{row}", tokens, computed))
        counts.append(int(generator.integers(1, length - computed + 1)))
        num_blocks = -(-length // block_size) + int(generator.integers(0, 4))
        tables.append(make_table(generator.permutation(500)[:num_blocks].tolist(), block_size))
    batch = build_batch(StepPlan(requests, counts, tables), block_size)

    token_ids, positions, slots, starts = [], [], [], [0]
    for request, count, table in zip(requests, counts, tables, strict=True):
        for at in range(request.num_computed_tokens, request.num_computed_tokens + count):
            token_ids.append(request.token_ids[at])
            positions.append(at)
            slots.append(int(table.ids[at // block_size]) * block_size + at % block_size)
        starts.append(len(token_ids))
    assert batch.token_ids.tolist() == token_ids
    assert batch.positions.tolist() == positions
    assert batch.slot_mapping.tolist() == slots
    assert batch.query_starts.tolist() == starts
    context_lens = [r.num_computed_tokens + c for r, c in zip(requests, counts, strict=True)]
    assert batch.context_lens.tolist() == context_lens
    width = max(-(-length // block_size) for length in context_lens)
    for row, (length, table) in enumerate(zip(context_lens, tables, strict=True)):
        own = table.ids[: -(-length // block_size)].tolist()
        assert batch.block_tables[row].tolist() == own + [0] * (width - len(own))
    kinds = [batch.token_ids, batch.positions, batch.slot_mapping]
    assert {tensor.dtype for tensor in kinds} == {torch.int64}
    kinds = [batch.query_starts, batch.context_lens, batch.block_tables]
    assert {tensor.dtype for tensor in kinds} == {torch.int32}


def test_execute_samples_only_where_tokens_end() -> None:
    result = run(
        [
            (make_request("decode", [1, 2, 3], 2, num_output=1), 1),
            (make_request("whole prompt", [4, 5, 6]), 3),
            (make_request("part of a prompt", [7, 8, 9]), 2),
            (make_request("rest of a prompt", [10, 11, 12], 2), 1),
        ]
    )
    assert result.token_ids == [4, 7, NO_TOKEN, 13]
    assert (result.logprobs, result.prompt_logprobs, result.failures) == ({}, {}, {})


@pytest.mark.parametrize(("params", "num_hidden"), [({}, 2), ({"prompt_logprobs": 0}, 5)])
def test_execute_computes_only_the_hidden_states_that_are_read(
    params: dict[str, Any], num_hidden: int
) -> None:
    model = FakeModel()
    work = [(make_request("a", [1, 2, 3, 4], **params), 3), (make_request("b", [5, 6]), 2)]
    result = make_runner(model).execute(make_plan(work))
    assert result.token_ids == [NO_TOKEN, 7]
    assert model.num_hidden == num_hidden


def test_execute_scores_nothing_when_no_tokens_end() -> None:
    model = FakeModel()
    make_runner(model).execute(make_plan([(make_request("a", [1, 2, 3]), 2)]))
    assert model.num_scored == 0


@pytest.mark.parametrize("bad_token", BAD_TOKENS)
def test_execute_fails_only_the_damaged_request(bad_token: int) -> None:
    work = [
        (make_request("a", [1, 2], logprobs=1), 2),
        (make_request("damaged", [3, bad_token], logprobs=1, temperature=1.0), 2),
        (make_request("waiting", [5, bad_token, 7]), 2),
        (make_request("b", [6, 8], logprobs=1), 2),
    ]
    result = run(work)
    assert result.token_ids == [3, NO_TOKEN, NO_TOKEN, 9]
    assert list(result.failures) == [1]
    assert "next token" in result.failures[1]
    assert {index: entry.token_id for index, entry in result.logprobs.items()} == {0: 3, 3: 9}


def test_execute_survives_a_step_in_which_every_request_is_damaged() -> None:
    result = run([(make_request("a", [1, 30]), 2), (make_request("b", [30]), 1)])
    assert result.token_ids == [NO_TOKEN, NO_TOKEN]
    assert sorted(result.failures) == [0, 1]


def test_execute_reports_logprobs_of_the_unmodified_logits() -> None:
    biased = make_request("a", [1, 2], logit_bias={9: 100.0}, logprobs=1)
    result = run([(biased, 2), (make_request("b", [4]), 1)])
    assert result.token_ids == [9, 5]
    expected = torch.log_softmax(FakeModel().logits(torch.tensor([[2.0]])), -1)[0]
    entry = result.logprobs[0]
    assert (entry.token_id, entry.rank) == (9, 2)
    assert entry.logprob == pytest.approx(float(expected[9]))
    assert [token for token, _ in entry.top] == [3]
    assert 1 not in result.logprobs


@pytest.mark.parametrize(
    ("num_computed", "count", "predicted"),
    [(0, 5, [2, 3, 4, 9]), (0, 2, [2, 3]), (2, 2, [4, 9]), (3, 2, [9]), (4, 1, [])],
)
def test_execute_scores_the_prompt_tokens_that_a_chunk_predicts(
    num_computed: int, count: int, predicted: list[int]
) -> None:
    request = make_request("a", [1, 2, 3, 4, 9], num_computed, prompt_logprobs=1)
    result = run([(make_request("other", [20, 21]), 2), (request, count)])
    entries = result.prompt_logprobs.get(1, [])
    assert [entry.token_id for entry in entries] == predicted
    assert [entry.top[0][0] for entry in entries] == [
        token + 1 for token in request.token_ids[num_computed : num_computed + len(predicted)]
    ]
    assert [entry.rank for entry in entries] == [1 if t != 9 else 2 for t in predicted]


def test_execute_scores_a_prompt_once_when_it_is_recomputed() -> None:
    request = make_request("a", [1, 2, 3, 4], 0, num_output=2, prompt_logprobs=0)
    result = run([(request, 4)])
    assert result.prompt_logprobs == {}
    assert result.token_ids == [5]


def test_execute_scores_a_prompt_that_takes_several_slices() -> None:
    prompt = [(7 * position) % 30 for position in range(40)]
    result = run([(make_request("a", prompt, prompt_logprobs=0), 40)])
    assert [entry.token_id for entry in result.prompt_logprobs[0]] == prompt[1:]


def test_execute_copies_blocks_before_it_computes() -> None:
    model, copied = FakeModel(), []
    runner = make_runner(model)
    runner._store.copy_blocks = lambda pairs: copied.append((list(pairs), model.num_scored))
    plan = make_plan([(make_request("a", [1]), 1)])
    runner.execute(StepPlan(plan.requests, plan.num_new_tokens, plan.tables, [(0, 5)]))
    assert copied == [([(0, 5)], 0)]
