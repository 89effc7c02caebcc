"""A device without numbers that does nothing before it has to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from evenflow.core.ids import RequestId
from evenflow.scheduling.plan import NO_TOKEN, StepPlan, StepResult

Slot = tuple[int, int]


@dataclass
class _Row:
    """One request's part of a step, as the device is told of it when the step starts."""

    request_id: RequestId
    start: int
    token_ids: list[int] | None  # None: what it sampled last
    slots: list[Slot]
    samples: bool
    fails: bool


class LateExecutor:
    """Carries out steps in order, when what came out of one is asked for.

    KV is the hash of all tokens up to a position, read from the slot of the position before, and
    the next token follows from the last one's KV: a slot that holds the wrong thing changes all
    that comes after.

    Args:
        block_size: tokens per block.
        vocab_size: number of tokens.

    Attributes:
        store: the KV in each slot.
        num_followed: steps that were started before the one before them was finished.
        fails_at: by request, the number of tokens with which it fails.
    """

    def __init__(self, block_size: int, vocab_size: int) -> None:
        self.store: dict[Slot, int | None] = {}
        self.num_followed = 0
        self.fails_at: dict[str, int] = {}
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._queue: deque[Callable[[], None]] = deque()
        self._last: dict[RequestId, int] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        return self.start(plan)()

    def start(self, plan: StepPlan) -> Callable[[], StepResult]:
        self.num_followed += plan.follows
        rows = []
        for request, start, count, table in zip(
            plan.requests, plan.starts, plan.num_new_tokens, plan.tables, strict=True
        ):
            ids = table.ids.tolist()
            slots = [
                (ids[at // self._block_size], at % self._block_size) for at in range(start + count)
            ]
            token_ids = None if plan.follows else request.token_ids[start : start + count]
            samples = start + count >= request.num_tokens
            fails = start + count == self.fails_at.get(request.request_id)
            rows.append(_Row(request.request_id, start, token_ids, slots, samples, fails))
        result = StepResult([NO_TOKEN] * len(rows))
        is_done: list[bool] = []
        self._queue.append(partial(self._run, list(plan.copies), rows, result, is_done))

        def finish() -> StepResult:
            while not is_done:
                self._queue.popleft()()
            return result

        return finish

    def drain(self) -> None:
        """Carry out all that was started, as a copy that comes after it has to wait for."""
        while self._queue:
            self._queue.popleft()()

    def _run(
        self, copies: list[Slot], rows: list[_Row], result: StepResult, is_done: list[bool]
    ) -> None:
        for source, destination in copies:
            for offset in range(self._block_size):
                self.store[destination, offset] = self.store.get((source, offset))
        for index, row in enumerate(rows):
            token_ids = [self._last[row.request_id]] if row.token_ids is None else row.token_ids
            kv = self.store.get(row.slots[row.start - 1]) if row.start else 0
            for at, token_id in enumerate(token_ids, row.start):
                kv = hash((kv, at, token_id))
                self.store[row.slots[at]] = kv
            if row.fails:
                result.failures[index] = "told to fail"
            elif row.samples:
                token_id = kv % self._vocab_size
                self._last[row.request_id] = result.token_ids[index] = token_id
        is_done.append(True)
