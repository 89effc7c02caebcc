"""Takes many steps at once while there is nothing to decide.

When every running request decodes, nobody can be started and memory suffices, each step computes
one token of each request, and the next step is like it. Coasting takes such steps together: it
touches each request once, and memory only where a request needs its next block or has filled one,
in the very order in which single steps would. What it leaves behind is the same, block for block.

It rests on what every policy promises: a running request that lacks one token gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from evenflow.core.errors import IntegrityError
from evenflow.core.events import WaitReason
from evenflow.core.request import Request
from evenflow.scheduling.scheduler import Scheduler

NextTokens = Callable[[Request, int], Sequence[int]]
"""Called with a request and a number, returns that many tokens to append."""


def coasting_steps(scheduler: Scheduler) -> int:
    """Return how many steps from now on are like the last one, if nothing comes from outside.

    In none of them does a request end by its length. Whoever coasts must know that none ends by a
    token or a deadline either, and that nobody is added meanwhile.
    """
    running = scheduler.running
    if not running or scheduler.plan.requests != running or scheduler.is_paused:
        return 0
    if scheduler.plan.num_tokens != len(running) or not _stands_still(scheduler):
        return 0
    if any(r.num_tokens_when_admitted == len(r.token_ids) for r in running):
        return 0
    num_steps = min(r.max_num_tokens - len(r.token_ids) for r in running) - 1
    return _steps_within_memory(scheduler, num_steps) if num_steps > 0 else 0


def coast(scheduler: Scheduler, num_steps: int, next_tokens: NextTokens) -> None:
    """Take `num_steps` steps, at most as many as `coasting_steps` says.

    Raises:
        IntegrityError: there was no memory for as many.
    """
    kv = scheduler.kv
    events = sorted(_memory_events(scheduler, num_steps))
    for request in scheduler.running:
        request.token_ids.extend(next_tokens(request, num_steps))
        request.num_computed_tokens += num_steps
        scheduler.service.num_output_tokens[request.tenant_id] += num_steps
    for _, is_full, rank, num_tokens in events:
        request = scheduler.running[rank]
        if is_full:
            kv.commit(request, num_tokens)
        elif not kv.ensure(request.request_id, num_tokens):
            raise IntegrityError(f"{request.request_id} ran out of memory where there was enough")


def _stands_still(scheduler: Scheduler) -> bool:
    """Return whether nobody who waits could be started as long as the same requests run."""
    policy, kv = scheduler.policy, scheduler.kv
    if policy.rank_changes_with_time or kv.has_shared_tables:
        return False
    if not scheduler.waiting:
        return True
    # A full block that becomes known may be what a request at the door was waiting for.
    may_find_blocks = scheduler.lacking is WaitReason.MEMORY and kv.enable_prefix_caching
    return scheduler.lacking is not None and not may_find_blocks


def _steps_within_memory(scheduler: Scheduler, num_steps: int) -> int:
    """Return the largest number up to `num_steps` for which all blocks are to be had."""
    kv = scheduler.kv

    if len(scheduler.running) * -(-num_steps // kv.block_size) <= kv.num_available_blocks:
        return num_steps  # even if each request's next token began a block

    def fits(count: int) -> bool:
        needed = (kv.blocks_needed(r, len(r.token_ids) - 1 + count) for r in scheduler.running)
        return sum(needed) <= kv.num_available_blocks

    if fits(num_steps):
        return num_steps
    low, high = 0, num_steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _memory_events(scheduler: Scheduler, num_steps: int) -> Iterator[tuple[int, bool, int, int]]:
    """Yield (step, whether a block became full, rank, tokens) wherever memory is concerned.

    In order, they are what single steps would do: in step 1, 2, ... each request in its rank makes
    room for all its tokens, and after the step those whose last block is full make it known.
    """
    kv = scheduler.kv
    for rank, request in enumerate(scheduler.running):
        before = len(request.token_ids) - 1  # step n has room for, and computes, before + n tokens
        first_full = kv.next_full(request.request_id)
        first_short = kv.table(request.request_id).capacity_tokens + 1
        for first, is_full in ((first_short, False), (first_full, True)):
            for num_tokens in range(first, before + num_steps + 1, kv.block_size):
                yield num_tokens - before, is_full, rank, num_tokens
