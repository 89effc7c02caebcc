"""A model without numbers that finds every KV slot which holds the wrong thing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from evenflow.core.ids import RequestId
from evenflow.core.request import Request
from evenflow.execution.executor import ScriptedExecutor
from evenflow.memory.block_table import BlockTable
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult, TokenLogprobs

Slot = tuple[int, int]


def fingerprints(token_ids: list[int]) -> list[int]:
    """Return what stands for the KV at each position: all tokens up to there, and nothing else."""
    return list(accumulate(token_ids, lambda before, token: hash((before, token)), initial=0))[1:]


class KVCheckingExecutor(ScriptedExecutor):
    """Copies and writes fingerprints of KV as a plan says, then reads all that attention would.

    Args:
        next_token: as for `ScriptedExecutor`.
        block_size: tokens per block.

    Attributes:
        store: the fingerprint in each slot.
        fails_at: requests that fail in the step that computes their token of this number, counted
            from 1; the slots of that step are spoilt, as by a NaN.
    """

    def __init__(self, next_token: Callable[[RequestId, int], int], block_size: int) -> None:
        super().__init__(next_token)
        self.fails_at: dict[RequestId, int] = {}
        self._block_size = block_size
        self.store: dict[Slot, int | None] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """Carry out a plan; a slot that does not hold what is read from it is an AssertionError."""
        work = list(zip(plan.requests, plan.num_new_tokens, plan.tables, strict=True))
        failing = {i for i, (request, count, _) in enumerate(work) if self._fails(request, count)}
        for source, destination in plan.copies:
            for offset in range(self._block_size):
                self.store[destination, offset] = self.store.get((source, offset))
        self._write(work, failing)
        self._read(work, failing)
        result = super().execute(plan)
        for index, (request, count, _) in enumerate(work):
            if index in failing:
                result.token_ids[index] = NO_TOKEN
                result.failures[index] = "told to fail"
            elif request.sampling.prompt_logprobs is not None:
                result.prompt_logprobs[index] = _prompt_logprobs(request, count)
        return result

    def _fails(self, request: Request, count: int) -> bool:
        fails_at = self.fails_at.get(request.request_id)
        return fails_at is not None and request.num_computed_tokens + count >= fails_at

    def _write(self, work: list[tuple[Request, int, BlockTable]], failing: set[int]) -> None:
        written: set[Slot] = set()
        for index, (request, count, table) in enumerate(work):
            start, stop = request.num_computed_tokens, request.num_computed_tokens + count
            assert start < stop <= request.num_tokens, f"{request.request_id}: {start} to {stop}"
            content = fingerprints(request.token_ids[:stop])
            slots = self._slots(table, stop)
            for position in range(start, stop):
                assert slots[position] not in written, f"{slots[position]} is written twice"
                written.add(slots[position])
                self.store[slots[position]] = None if index in failing else content[position]

    def _read(self, work: list[tuple[Request, int, BlockTable]], failing: set[int]) -> None:
        for index, (request, count, table) in enumerate(work):
            stop = request.num_computed_tokens + (0 if index in failing else count)
            found = [self.store.get(slot) for slot in self._slots(table, stop)]
            assert found == fingerprints(request.token_ids[:stop]), (
                f"{request.request_id} reads KV that is not its own"
            )

    def _slots(self, table: BlockTable, stop: int) -> list[Slot]:
        ids = table.ids.tolist()
        return [(ids[at // self._block_size], at % self._block_size) for at in range(stop)]


def _prompt_logprobs(request: Request, count: int) -> list[TokenLogprobs]:
    first = request.num_computed_tokens + 1
    stop = min(first + count, request.num_prompt_tokens)
    return [TokenLogprobs(token_id, 0.0, 1, ()) for token_id in request.token_ids[first:stop]]
