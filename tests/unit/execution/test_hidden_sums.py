"""The sum over a prompt's hidden states: in fp64, and in the order of the tokens."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch

from evenflow.core.ids import RequestId
from evenflow.core.pooling import PoolingParams
from evenflow.core.request import Request
from evenflow.core.sampling import SamplingParams
from evenflow.execution.attention import Attention
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.torch.kv_store import KVStore
from evenflow.execution.torch.model_runner import ModelRunner
from evenflow.memory.block_table import BlockTable
from evenflow.memory.extents import Extent
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult

NUM_TOKENS, HIDDEN_SIZE = 40, 3
# Of magnitudes so different that another order, or fp32, gives another sum.
HIDDEN = torch.from_numpy(
    np.random.default_rng(0).standard_normal((NUM_TOKENS, HIDDEN_SIZE))
    * np.geomspace(1.0, 2.0**60, NUM_TOKENS)[np.random.default_rng(1).permutation(NUM_TOKENS), None]
).float()


class FakeModel:
    """Has the hidden state HIDDEN[token] for each token."""

    def forward(
        self, batch: ForwardBatch, attention: Attention, *, last_only: bool
    ) -> torch.Tensor:
        assert not last_only
        return HIDDEN[batch.token_ids]


def make_table(first_block: int) -> BlockTable:
    table = BlockTable(4, max_num_blocks=10)
    table.append(Extent(first_block, 10))
    table.use(10)
    return table


def run(request: Request, count: int) -> StepResult:
    """Compute some tokens of a request, behind two of a neighbour."""
    neighbour = Request(RequestId("n"), [3, 5, 7], SamplingParams(), max_num_tokens=10)
    attention: Any = None  # the fake model uses none
    model: Any = FakeModel()
    runner = ModelRunner(model, attention, KVStore(20, 1, 1, 8, 4))
    plan = StepPlan([neighbour, request], [2, count], [make_table(0), make_table(10)])
    return runner.execute(plan)


@pytest.mark.parametrize("chunk", [1, 2, 7, 13, NUM_TOKENS])
def test_execute_sums_hidden_states_token_after_token(chunk: int) -> None:
    request = Request(
        RequestId("e"),
        list(range(NUM_TOKENS)),
        SamplingParams(),
        max_num_tokens=NUM_TOKENS,
        pooling=PoolingParams(),
    )
    while request.num_computed_tokens < NUM_TOKENS:
        count = min(chunk, NUM_TOKENS - request.num_computed_tokens)
        result = run(request, count)
        assert list(result.hidden_sums) == [1]
        assert result.token_ids == [NO_TOKEN, NO_TOKEN]
        request.hidden_sum = result.hidden_sums[1]
        request.num_computed_tokens += count
    rows = HIDDEN.double().numpy()
    assert request.hidden_sum is not None
    assert request.hidden_sum.tolist() == reduce(np.add, rows).tolist()
    assert request.hidden_sum.tolist() != reduce(np.add, rows[::-1]).tolist()


def test_execute_starts_a_sum_afresh_when_no_token_is_computed() -> None:
    request = Request(
        RequestId("e"), [4, 6], SamplingParams(), max_num_tokens=2, pooling=PoolingParams()
    )
    request.hidden_sum = np.full(HIDDEN_SIZE, 1e30)  # left over from before a preemption
    assert (
        run(request, 2).hidden_sums[1].tolist()
        == (HIDDEN[4].double() + HIDDEN[6].double()).tolist()
    )
